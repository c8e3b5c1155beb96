"""The model's graphs: exact simplifications, components, traces and costs."""

"""The model's graphs: simplified, cut into components, traced, and what they cost."""

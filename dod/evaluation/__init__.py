"""Metrics, scores and figures of restored pictures, for the commands `evaluate`, `conditions` and `detail_figure`."""

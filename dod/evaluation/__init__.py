"""Metrics, scores and figures of restored images, for the commands `evaluate`, `conditions` and `detail_figure`."""

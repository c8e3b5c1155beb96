"""Bases at the paper's scale in the published layouts, with random weights: full-size work without published ones."""

"""Evaluation: metrics of restored images, the condition table, and the paper's ablations and figures."""

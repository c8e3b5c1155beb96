"""Fits of what the shipped model has and the paper has not: post-processing and pruned detail modules."""

"""Photographs, degradations and training crops."""

"""Diffusion Once and Done: the PyTorch model, its training and its evaluation."""

__version__ = "0.1.0"

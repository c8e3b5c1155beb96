"""Parity checks: a bundle's outputs compared with PyTorch's."""

"""Engines for TensorRT and TensorRT-RTX, each built in its own process."""

"""Engines of TensorRT and TensorRT-RTX, each built in a process of its own."""

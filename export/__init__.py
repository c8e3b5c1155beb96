"""Export of a checkpoint to a bundle: ONNX graphs, engines, condition values, and parity results against PyTorch."""

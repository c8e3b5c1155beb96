"""From a checkpoint to a bundle: ONNX graphs, engines, conditions, and the proof that they agree with PyTorch."""

"""Whether a bundle computes what PyTorch computes."""

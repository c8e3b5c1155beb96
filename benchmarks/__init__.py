"""Latency, parity, quality and scaling of a bundle on this machine."""

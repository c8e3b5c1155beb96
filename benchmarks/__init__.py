"""Benchmarks of a bundle on this machine: latency, memory, restoration quality, softness, tiles and single graphs."""

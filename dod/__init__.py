"""Diffusion Once and Done: the PyTorch model, its training and its evaluation."""

import os

# Read at PyTorch's first allocation: memory in huge pages. On the CPU each activation of tens of MB goes back to the
# system and the next one is taken anew: zeroing small pages costs a restoration at full size a fifth of its time.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"

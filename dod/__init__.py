"""Diffusion Once and Done: the PyTorch model, its training and its evaluation."""

import os

# Read at PyTorch's first allocation: memory in huge pages. On the CPU it hands each activation of tens of MB back to the
# system and takes the next one anew, and zeroing small pages costs a restoration at full size a fifth of its time.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"

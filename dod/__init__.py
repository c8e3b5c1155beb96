"""PyTorch model of Diffusion Once and Done (DOD), its training and its evaluation."""

import os

# PyTorch reads this at its first allocation and then uses huge pages. On a CPU it returns each activation of tens of MB
# to the system and allocates the next one again; zeroing small pages takes 20 % of a full-size restoration.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"

"""Images: reading, writing, margins and crops, and tiling of large ones."""

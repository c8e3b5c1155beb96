"""Images in and out, and what happens to their sizes in between."""

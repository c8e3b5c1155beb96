"""DOD model and its parts."""

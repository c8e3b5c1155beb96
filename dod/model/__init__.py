"""The DOD model and its parts."""

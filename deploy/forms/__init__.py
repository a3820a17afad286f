"""The forms that a network is shipped in."""

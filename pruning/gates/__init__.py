"""This package holds the gates of a unit: masks of 0 and 1 so far."""

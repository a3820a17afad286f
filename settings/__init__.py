"""This package turns a command line into settings; nothing in it imports torch."""

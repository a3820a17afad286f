"""This package writes what a run leaves behind, and reads it again: its folder, console lines, tables and figures."""

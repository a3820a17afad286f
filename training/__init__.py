"""This package says how a run goes: its stages and procedures, its optimiser, its engine and its record."""

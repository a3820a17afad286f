"""What was asked; imports no torch."""

"""How a detector is trained."""

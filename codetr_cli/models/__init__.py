"""The networks: they take built parts and numbers, never a file."""

"""Which layout a folder has, and how each is read."""

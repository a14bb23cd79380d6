"""Which numbers of an evaluation does a reader see? One file per group of sections of a report."""

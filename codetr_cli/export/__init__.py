"""Export: a checkpoint becomes a file that other runtimes run, with proof that it detects the same."""

"""The verbs of the program: parse, call, show."""

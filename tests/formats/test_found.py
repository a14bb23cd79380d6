"""The module `formats.found`."""

"""Writes data sets in the layouts of other tools: one module a layout."""

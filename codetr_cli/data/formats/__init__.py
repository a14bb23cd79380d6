"""Data set layouts: one module a layout."""

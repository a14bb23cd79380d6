"""Operators: one file each with its reference and its fast variants."""

"""Comparison with the recorded numbers of the published code: `python -m tests.golden CASE_DIR [CASE_DIR ...]`."""

"""Exported networks: what is in their files, and the libraries that run them."""

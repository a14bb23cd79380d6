"""Checkpoints: published names, conversion, our file format."""

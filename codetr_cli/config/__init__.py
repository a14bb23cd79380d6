"""What can be set: the schema, the presets, and overrides of single values."""

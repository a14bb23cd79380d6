"""The one-to-many heads trained beside the decoder."""

"""The one-to-many heads trained along with the decoder."""

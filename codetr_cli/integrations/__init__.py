"""How do other libraries use it? One module for each, imported by their users."""

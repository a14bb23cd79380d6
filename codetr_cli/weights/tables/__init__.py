"""Published entry names and ours, one table a part of the network, `{}` standing for an index."""

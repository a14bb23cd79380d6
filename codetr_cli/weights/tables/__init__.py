"""Published entry names -> ours, one table per part of the network; `{}` is an index."""

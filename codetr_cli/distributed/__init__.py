"""Who computes: processes, ranks, machines."""

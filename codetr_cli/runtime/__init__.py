"""What this machine is and offers."""

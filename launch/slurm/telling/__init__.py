"""What became of a chain: status, watch, logs, history."""

"""A rehearsal of preemption."""

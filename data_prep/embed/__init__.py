"""What turns texts into vectors: teachers and baselines."""

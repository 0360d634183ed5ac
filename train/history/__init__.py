"""What outlives a crash of a training phase: its checkpoints and its ledger. Knows nothing of DeepSpeed."""

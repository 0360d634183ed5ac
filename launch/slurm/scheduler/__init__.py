"""SLURM's commands: what they are asked, what they say, what they refuse."""

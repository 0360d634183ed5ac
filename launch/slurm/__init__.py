"""SLURM: jobs of a recipe, what runs inside them, and what becomes of them."""

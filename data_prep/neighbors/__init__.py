"""The nearest neighbours of every query, and where a score stands among all of its scores."""

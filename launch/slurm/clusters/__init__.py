"""Profiles of clusters: read, learned, listed."""

"""Pair rows, and labelled pairs from files."""

"""Nodes: looked at before a start, and remembered when they failed."""

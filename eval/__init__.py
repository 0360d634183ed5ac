"""Weights to evidence: metrics, retrieval, baselines, the report. Imports only `train` and `data_prep`."""

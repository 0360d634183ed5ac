"""Shards to weights: the backbone, the encoder, the objectives and the DeepSpeed engine. Imports only `data_prep`."""

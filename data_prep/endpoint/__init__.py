"""Language models and embedders behind an OpenAI-compatible endpoint: many requests, bounded, logged, paid for once."""

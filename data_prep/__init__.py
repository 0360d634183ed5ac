"""Raw text to verified shards: corpus, tokens, mined and synthetic pairs. Imports nothing from the other rooms."""

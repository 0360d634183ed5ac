"""Raw text → cleaned, distinct documents that no evaluation set holds."""

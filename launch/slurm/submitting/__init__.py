"""A recipe as jobs: which, with what text, submitted, resized, cancelled."""

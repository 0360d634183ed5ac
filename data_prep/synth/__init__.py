"""Documents → question–passage pairs."""

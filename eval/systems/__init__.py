"""What an evaluation compares: lexical, dense and remote rankers, and figures that others published."""

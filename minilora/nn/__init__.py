"""Floor 2, the transformer: read `module.py`, `layers.py`, then `gpt.py` from top to bottom."""

"""Floor 3, every way to adapt a frozen transformer: `lora.py` is the paper."""

"""Floor 1, arrays and derivatives: read `tensor.py`, then `ops.py`, `fused.py` and `gradcheck.py`."""

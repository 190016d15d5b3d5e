"""Floor 1, arrays and derivatives: read `tensor.py` and `tape.py`, then `ops.py`, `fused.py` and `gradcheck.py`.

The primitives: `ops.py` entry by entry, `products.py`, `reductions.py`, `shapes.py`; fused: `fused.py`, `attention.py`,
`normal.py`, `head.py`. `checkpoint.py`: computing again instead of keeping.
What a Tensor is asked beside mathematics: `arguments.py` (lists, precision, errors), `border.py` (NumPy's functions),
`words.py` (PyTorch's), `recording.py` (no_grad), `versions.py` (values written over). `backend.py`: NumPy or CuPy.
"""

"""Floor 2, the transformer: read `module.py`, `layers.py`, then `gpt.py` from top to bottom."""

from typing import Any


def __getattr__(name: str) -> Any:  # asked only for what is not there
    from .habits import PACKAGE, advice

    raise AttributeError(f"minilora.nn has no {name!r}{advice(name, PACKAGE)}")

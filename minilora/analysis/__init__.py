"""Floor 5, what the lecture asks of trained matrices: rank, counting, studies and figures."""

import importlib
from typing import Any

__all__ = ["counting", "rank"]


def __getattr__(name: str) -> Any:
    """Import a room when it is first asked for: `import minilora` stays quick, `ml.analysis.rank` simply works."""
    if name not in __all__:
        raise AttributeError(f"minilora.analysis has no {name!r}; there are {', '.join(__all__)}")
    return importlib.import_module(f"{__name__}.{name}")

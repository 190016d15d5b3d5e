"""Floor 5, mathematics of what was trained and what it costs: rank, rounding, counting, costs, methods, and tables."""

import importlib
from typing import Any

__all__ = ["costs", "counting", "intruders", "low_rank", "methods", "paper", "peft_comparison", "rank", "rounding"]


def __getattr__(name: str) -> Any:
    """Import a file when it is first asked for: `import minilora` stays quick, `ml.analysis.rank` simply works."""
    if name not in __all__:
        raise AttributeError(f"minilora.analysis has no {name!r}; there are {', '.join(__all__)}")
    return importlib.import_module(f"{__name__}.{name}")

"""The libraries of the extra `models`, which read other people's files: loaded when one is opened, never before."""

import importlib
from typing import Any


def extra(module: str, caller: str) -> Any:
    """A library's module. Raises ImportError in one line that says what to install, where it is absent."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        fix = f'{caller} needs {library}: pip install "minilora[models]"'
        raise ImportError(f"{fix} ({error})" if getattr(error, "name", library) != library else fix) from None

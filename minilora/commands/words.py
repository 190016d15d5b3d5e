"""What a command says when something is wrong: one line on stderr."""

import contextlib
import sys
import warnings
from collections.abc import Iterator


def say_error(words: str) -> None:
    """One line on stderr, whatever is in the words."""
    print("minilora: " + " ".join(words.split()), file=sys.stderr)


@contextlib.contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Inside the block a warning is one line. NumPy's are left out: a loss that is not finite is reported as such."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.filterwarnings("ignore", category=RuntimeWarning)
        warnings.showwarning = lambda message, *_: say_error(f"warning: {message}")
        yield


def reason(error: Exception) -> str:
    """What an error says to a person."""
    if isinstance(error, MemoryError):
        return f"not enough memory ({error or 'none left'}): a smaller model, --batch or --context needs less"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__

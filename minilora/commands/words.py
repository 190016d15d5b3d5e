"""What a command says, and that nobody has to listen: a closed pipe costs no work, a narrow alphabet no traceback."""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

PLAIN = str.maketrans({"×": "x", "±": "+-", "·": "*", "−": "-", "–": "-", "—": "-", "→": "->", "↑": "^", "’": "'"})


class Heard:
    """A stream that outlives its reader: what nobody takes is dropped, and `lost` is the error that said so.

    A character that its encoding does not have becomes its like in ASCII, or a question mark.
    """

    def __init__(self, stream: Any):
        self.stream = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115  None: closed from the start
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        """Write, if anybody listens."""
        try:
            self._try(self.stream.write, text)
        except UnicodeEncodeError:
            code = self.stream.encoding
            self._try(self.stream.write, text.translate(PLAIN).encode(code, "replace").decode(code))
        return len(text)

    def flush(self) -> None:
        """Hand over what was written, if anybody listens."""
        self._try(self.stream.flush)

    def _try(self, call: Any, *text: str) -> None:
        try:
            call(*text)
        except OSError as error:
            self.lost = self.lost or error
            with contextlib.suppress(OSError):  # what is still in the buffer, and what comes, goes nowhere
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def heard() -> Iterator[Heard]:
    """Inside the block, stdout (which is given) and stderr are streams that outlive their readers."""
    out = Heard(sys.stdout)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(Heard(sys.stderr)):  # type: ignore[type-var]
        yield out


def say_error(words: str) -> None:
    """One line on stderr, whatever is in the words."""
    print("minilora: " + " ".join(words.split()), file=sys.stderr, flush=True)


@contextlib.contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Inside the block a warning is one line. NumPy's are left out: a loss that is not finite is reported as such."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.filterwarnings("ignore", category=RuntimeWarning)
        shown = warnings.showwarning
        warnings.showwarning = lambda message, *_: say_error(f"warning: {message}")
        try:
            yield
        finally:
            warnings.showwarning = shown  # where Python has no lock, catch_warnings leaves it (3.14)


def reason(error: BaseException) -> str:
    """What an error says to a person, and what was noted beside it."""
    if isinstance(error, MemoryError):
        said = f"not enough memory ({error or 'none left'}): a smaller model, --batch or --context needs less"
    elif isinstance(error, OSError) and error.strerror:
        said = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        said = str(error) or type(error).__name__
    return "; ".join([said, *getattr(error, "__notes__", [])])

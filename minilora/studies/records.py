"""JSON files of runs and records: written whole, and read with care."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..nn.files import write_beside

HERE = Path("figures/data")  # where a study of this checkout writes
PACKAGE = Path(__file__).parents[1]


def record_path(study: str, folder: str | Path | None = None) -> Path:
    """Where a study's records lie: in the folder; else in figures/data, here or of the checkout, or in the wheel."""
    places = [Path(folder)] if folder else [HERE, PACKAGE.parent / HERE, PACKAGE / "course" / "records"]
    paths = [place / f"{study}.json" for place in places]
    return next((path for path in paths if path.exists()), paths[0])


def write_json(path: str | Path, content: Any) -> Path:
    """Write JSON beside its place and rename it."""
    text = json.dumps(content, indent=1) + "\n"
    return write_beside(path, lambda file: file.write(text.encode()))


def read_json(path: Path, fix: str) -> dict[str, Any]:
    """The table in a JSON file. Raises ValueError, with what to do, for a file that is cut short or holds no table."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, expected a table of names and values")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is cut short or no record ({error}); {fix}") from None
    return content


def kept_rows(folder: Path, words: Iterable[Any], measure: Callable[[], Iterable[Any]]) -> list[dict[str, Any]]:
    """Rows that take long to measure, in a file named by these words: a stopped study goes on after them."""
    path = folder / f"{'-'.join(map(str, words))}.rows"
    if not path.exists():
        write_json(path, {"rows": list(measure())})
    return read_json(path, "delete it, and `minilora study` makes it anew")["rows"]

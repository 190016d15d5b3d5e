"""What runs in a process of its own: nbgrader grades one submission in a scratch course, and watches its kernel.

    python -m minilora.homework.worker FOLDER STUDENT SET TIMEOUT MEMORY

It writes FOLDER/result.json at its end. Three things are done while the student's code runs, or right after it: output
is cut, what the code left running is ended, and a gradebook that changed meanwhile is a reason to grade nothing.
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from .containment import adopt_orphans, end_children
from .course import cause, course_api

RESULT = "result.json"
MOST_OUTPUT = 2**20  # characters that a cell may print


class TamperingError(Exception):
    """A submission changed what it is none of its business to change."""


def main(folder: str, student: str, name: str, timeout: str, memory: str) -> None:
    """Grade one submission of a scratch course; the last two in seconds a cell and bytes a process, 0 for no limit."""
    adopt_orphans(True)
    limit(int(memory))
    api = course_api(Path(folder), int(timeout) or None)
    api.config.Autograde.autograde_preprocessors = contained(Path(folder) / "gradebook.db")
    result = api.autograde(name, student)
    said = "" if result["success"] else cause(result)
    Path(folder, RESULT).write_text(json.dumps({"graded": result["success"], "said": said}), encoding="utf-8")


def limit(memory: int) -> None:
    """At most so many bytes of address space a process and in a file, and no core files. Kernels inherit it."""
    with contextlib.suppress(ImportError):  # Windows has no such limits
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for kind in (resource.RLIMIT_AS, resource.RLIMIT_FSIZE) if memory else ():
            resource.setrlimit(kind, (memory, memory))


def contained(gradebook: Path) -> list:
    """nbgrader's steps of grading, with an `Execute` that cuts output and guards the gradebook."""
    from nbformat.v4 import new_output
    from nbgrader.converters import Autograde
    from nbgrader.preprocessors import Execute

    class ContainedExecute(Execute):
        """Run the cells; a cell that prints too much has an error, and so no points where it is a test."""

        def preprocess(self, nb: Any, resources: Any, retries: Any = None) -> tuple:
            """Execute the notebook. Raises TamperingError when the gradebook is another one afterwards."""
            before, self.printed = gradebook.read_bytes(), dict[int, int]()
            try:
                return super().preprocess(nb, resources, retries)
            finally:
                end_children()
                if gradebook.read_bytes() != before:
                    raise TamperingError("the gradebook changed while the submission ran")

        def output(self, outs: list, msg: Any, display_id: Any, cell_index: int) -> Any:
            """Keep an output, up to a total of MOST_OUTPUT characters a cell."""
            before = self.printed.get(cell_index, 0)
            self.printed[cell_index] = before + len(str(msg["content"]))
            if self.printed[cell_index] <= MOST_OUTPUT:
                return super().output(outs, msg, display_id, cell_index)
            if before <= MOST_OUTPUT:
                outs.append(new_output("stream", name="stderr", text=f"output cut at {MOST_OUTPUT:,} characters\n"))
            return None

    steps = Autograde.autograde_preprocessors.default()
    return [ContainedExecute if step is Execute else step for step in steps]


if __name__ == "__main__":
    main(*sys.argv[1:])

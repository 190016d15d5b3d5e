"""`minilora homework`."""

import argparse
import shlex
import sys

from .options import command, one_of, option, refuse_ignored, whole
from .outputs import output_folder


@command(
    option("action", None, "release writes the students' version, grade grades what came back",
           type=one_of("release", "grade"), metavar="release|grade"),
    option("folder", None, "for grade: the submissions, STUDENT/ps1/NAME.ipynb or STUDENT/ps1.ipynb", nargs="?"),
    option("--output", "homework", "the folder for release, grades and gradebook", type=output_folder, metavar="DIR"),
    option("--course", None, "the course (default notebooks/homework, here or in the checkout)", metavar="DIR"),
    option("--timeout", None, "seconds a cell may take (default the course's, 30)", type=whole(1), metavar="N"),
    option("--memory", 2048, "MiB a submission may take", type=whole(256), metavar="N"),
    option("--isolate", False, "no network and a read-only file system, where the system can", action="store_true"),
    example="minilora homework grade submissions --output homework",
)  # fmt: skip
def homework(args: argparse.Namespace) -> int:
    """Hand out the homework, or grade it, with nbgrader.

    Grading runs the students' code with your rights; with --isolate, with hardly any: see notebooks/homework/README.md.
    What was graded before and has not changed is not run again. The exit code is 1 when a submission could not be
    graded.
    """
    from ..homework import grade, release, save_table, table

    if args.action == "release":
        of_grading = ["folder", "--timeout", "--memory", "--isolate"]
        refuse_ignored(args, of_grading, "cannot be given with release, which grades nothing")
        for path in release(args.output, args.course):
            print(path)
        return 0
    if args.folder is None:
        raise ValueError("grade what? minilora homework grade FOLDER takes the folder with the submissions")
    memory = args.memory * 2**20
    rows = grade(args.folder, args.output, args.course, args.timeout, sys.stderr.isatty(), args.isolate, memory)
    saved = save_table(rows, args.output / "grades.csv")
    print(table(rows))
    print(f"saved    {saved}")
    print(f"by hand  cd {shlex.quote(str(args.output))} && jupyter lab   (nbgrader's menu, Formgrader)")
    return int(any(not row.cells for row in rows))

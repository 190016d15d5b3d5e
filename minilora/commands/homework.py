"""`minilora homework`."""

import argparse
import shlex
import sys
from pathlib import Path

from .options import command, one_of, option, refuse_ignored, whole
from .outputs import output_folder


@command(
    option("action", None, "release writes the students' version, grade grades what came back, capstone trains and "
           "grades recipes on hidden pages of the students' own texts",
           type=one_of("release", "grade", "capstone"), metavar="release|grade|capstone"),
    option("folder", None, "for grade: the submissions, STUDENT/ps1/NAME.ipynb or STUDENT/ps1.ipynb; for capstone: "
           "STUDENT/text.txt and STUDENT/recipe.json", nargs="?"),
    option("--output", "homework", "the folder for release, grades and gradebook", type=output_folder, metavar="DIR"),
    option("--course", None, "the course (default notebooks/homework, here or in the checkout)", metavar="DIR"),
    option("--timeout", None, "seconds a cell may take (default the course's, 30)", type=whole(1), metavar="N"),
    option("--memory", 2048, "MiB a submission may take", type=whole(256), metavar="N"),
    option("--seed", None, "for capstone: of the hidden pages (default a secret one, kept in DIR/capstone)",
           type=whole(0), metavar="N"),
    option("--isolate", False, "no network and a read-only file system, where the system can", action="store_true"),
    example="minilora homework grade submissions --output homework",
)  # fmt: skip
def homework(args: argparse.Namespace) -> int:
    """Hand out the homework, or grade it, with nbgrader; or train and grade the capstone.

    Grading runs the students' code with your rights; with --isolate, with hardly any: see notebooks/homework/README.md.
    What was graded before and has not changed is not run again. The exit code is 1 when a submission could not be
    graded.
    """
    from ..homework import grade, release, save_table, table

    if args.action == "release":
        of_grading = ["folder", "--timeout", "--memory", "--isolate", "--seed"]
        refuse_ignored(args, of_grading, "cannot be given with release, which grades nothing")
        for path in release(args.output, args.course):
            print(path)
        return 0
    if args.folder is None:
        raise ValueError(
            f"{args.action} what? minilora homework {args.action} FOLDER takes the folder with the submissions"
        )
    if args.action == "capstone":
        return rank(args)
    refuse_ignored(args, ["--seed"], "cannot be given with grade, which draws nothing")
    memory = args.memory * 2**20
    rows = grade(args.folder, args.output, args.course, args.timeout, sys.stderr.isatty(), args.isolate, memory)
    saved = save_table(rows, args.output / "grades.csv")
    print(table(rows))
    print(f"saved    {saved}")
    print(f"by hand  cd {shlex.quote(str(args.output))} && jupyter lab   (nbgrader's menu, Formgrader)")
    return int(any(not row.cells for row in rows))


def rank(args: argparse.Namespace) -> int:
    """Train and grade the capstone, and print the leaderboard: -> 1 where somebody could not be graded."""
    from ..homework.capstone import as_text, capstone, leaderboard, save_leaderboard

    of_nbgrader = ["--course", "--timeout", "--memory", "--isolate"]
    refuse_ignored(args, of_nbgrader, "cannot be given with capstone, which runs no notebooks")
    output = args.output / "capstone"
    entries = capstone(args.folder, output, args.seed, sys.stderr.isatty())
    rows = leaderboard(entries)
    saved = save_leaderboard(rows, Path(output, "leaderboard.md"))
    print(as_text(rows))
    print(f"saved  {saved}")
    return int(any(entry.base is None for entry in entries))

"""`minilora study`."""

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from ..nn.storage import blaming
from .options import command, convert, did_you_mean, given, one_of, option, refuse_ignored, whole
from .outputs import output_folder
from .words import say_error


@command(
    option("name", None, "one study, or all", metavar="STUDY"),
    option("--quick", False, "every study in reduced form, in minutes", action="store_true"),
    option("--output", None, "the folder for the records (default figures/data; with --quick runs/quick)",
           type=output_folder, metavar="DIR"),
    option("--cache", "runs/study", "where finished runs are kept; delete it to train anew", metavar="DIR"),
    option("--table", False, "train nothing: print the table of all methods from the records there are",
           action="store_true"),
    option("--force", False, "make records anew that are there already", action="store_true"),
    option("--jobs", 1, "runs at a time, each on a core of its own (pip install minilora[cluster])", type=whole(1),
           metavar="N"),
    option("--backend", "loky", "what makes them: loky, processes of this machine; dask", type=one_of("loky", "dask"),
           metavar="NAME"),
    option("--scheduler", None, "the address of a Dask scheduler, such as tcp://HOST:8786, all of whose workers see "
           "--cache; without it --backend dask starts workers here", metavar="ADDRESS"),
    example="minilora study ranks --quick",
)  # fmt: skip
def study(args: argparse.Namespace) -> int:
    """Put a question of the lecture to the base model, by training it many times.

    The studies: methods (LoRA, all weights, every alternative), matrices, ranks, rates (learning rates), starts
    (initialisation), asymmetry (A or B alone), batches (batch size), data (how much text), spectra, rank-use,
    truncation and subspaces (where the update lives), intruders (do they cause forgetting?), sizes (how each method
    scales), bits (quantised bases and QLoRA), sixteen-bits (what a merge keeps), forgetting (beside what is learned),
    tasks (one after the other), latency and memory, rewards (reinforcement learning with few parameters); style,
    style-blocks and style-mixed (fonts taught to a model that draws letters: by how many glyphs, in which blocks,
    adapters mixed), segments (a segmenter of pictures taught plates, characters and cracks), images (a classifier of
    letters learns Greek); and real, which puts its question to SmolLM2 and needs it fetched: minilora fetch
    smollm2-135m.

    Finished runs are kept: a study that was stopped goes on where it was; --jobs makes several at a time, the same to
    the last bit. A full study of everything takes about two hours on two cores, and real another one.
    """
    from ..interop.fetch import is_here
    from ..pictures.method_table import FOOT, methods_table
    from ..studies import runs, studies

    names = list(studies.STUDIES) if args.name == "all" else [args.name]
    if names[0] not in studies.STUDIES:
        raise ValueError(f"no study {args.name!r}{did_you_mean(args.name, [*studies.STUDIES, 'all'])}")
    scale = runs.QUICK if args.quick else runs.FULL
    folder = Path(args.output or ("runs/quick" if args.quick else "figures/data"))
    if args.table:
        refuse_ignored(args, ["--cache", "--force"], "cannot be given with --table, which trains nothing")
        if args.name != "methods":
            raise ValueError(f"study {args.name} --table: the table is of the study methods")
        records = studies.load_records("methods", folder)
        with blaming(folder / "methods.json"):
            print(f"{methods_table(records)}\n\n{FOOT}")
        return 0
    for flag, place in (("--output", folder), ("--cache", args.cache)):
        convert(flag, {"type": output_folder, "metavar": "DIR"}, str(place))
    todo = [name for name in names if args.force or args.name != "all" or not (folder / f"{name}.json").exists()]
    for name in names:
        if args.name == "all" and not args.force and (folder / f"{name}.json").exists():
            print(f"{name:<12}  there     {folder / name}.json; --force makes it anew", flush=True)
            continue  # an interrupted `all` goes on with the study it was in
        if args.name == "all" and name in studies.NEEDS and not is_here(studies.NEEDS[name]):
            print(f"{name:<12}  left out  minilora fetch {studies.NEEDS[name]} gets the model it needs", flush=True)
            continue
        started = time.perf_counter()
        try:
            if name == todo[0]:
                side_by_side(args, todo, scale)
            path = studies.run_study(name, scale, folder, args.cache, args.force, progress=sys.stderr.isatty())
        except KeyboardInterrupt:
            words = shlex.join(["minilora", "study", args.name, *given(args)])
            say_error(f"stopped in {name}; its finished runs are kept in {args.cache}; to go on: {words}")
            return 130
        print(f"{name:<12}{time.perf_counter() - started:>6.0f} s   {path}", flush=True)
    print(f"draw them    minilora figures --data {shlex.quote(str(folder))}")
    return 0


def side_by_side(args: argparse.Namespace, names: list[str], scale: Any) -> None:
    """Make the studies' runs several at a time, where that is asked for."""
    if args.backend == "loky":
        refuse_ignored(args, ["--scheduler"], "is of --backend dask")
    elif args.scheduler:
        refuse_ignored(args, ["--jobs"], "cannot be given with --scheduler: all its workers take runs")
    if args.jobs == 1 and args.backend == "loky":
        return
    from ..studies.grid import make_runs

    started = time.perf_counter()
    made = make_runs(names, scale, args.cache, args.jobs, args.backend, args.scheduler, sys.stderr.isatty())
    print(f"{made:,} runs  {time.perf_counter() - started:>6.0f} s   {args.cache}", flush=True)

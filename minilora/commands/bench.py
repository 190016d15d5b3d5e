"""`minilora bench`."""

import argparse
import json
import re
import sys
from pathlib import Path

from ..autograd.backend import BACKENDS
from .options import command, did_you_mean, names_in, one_of, option, refuse_ignored, whole
from .outputs import output_file, refuse_overwriting


@command(
    option("--sizes", "tiny,small,medium", "model sizes, by commas; there is gpt2, too", type=names_in,
           metavar="NAMES"),
    option("--parts", "import,memory,scalars,generation,lora,full", "what to measure, by commas; lora and full are "
           "training steps; images are those of models of pictures; model is one in the shape of SmolLM2, beside "
           "transformers and PEFT, in minutes and 2 GiB; exchange is what processes send that train together, LoRA "
           "beside full, with MPI; scaling is how a step grows with length, batch, width and depth, in five minutes; "
           "cores is a step in pieces on threads and processes, and a model of more cores than these; cluster is 24 "
           "runs of a study on two workers of Dask beside one, and on two processes, in four minutes",
           type=names_in, metavar="NAMES"),
    option("--peers", "torch,torch-compiled,jax,autograd", "who stands beside, by commas, where installed",
           type=lambda text: names_in(text) if text else (), metavar="NAMES"),
    option("--repeats", 15, "turns", type=whole(1), metavar="N"),
    option("--batch", None, "texts a training step, in place of the size's own", type=whole(1), metavar="N"),
    option("--backend", "numpy", "numpy, or cupy for the training steps on a GPU (batch 64 at medium, 8 at gpt2)",
           type=one_of(*BACKENDS), metavar="NAME"),
    option("--profile", False, "where the time of a step goes, too", action="store_true"),
    option("--demo", False, "minilora demo beside its training in PyTorch, too; this takes minutes",
           action="store_true"),
    option("--json", False, "print JSON in place of the table", action="store_true"),
    option("--output", None, "write the JSON to a file, such as figures/data/bench.json", type=output_file,
           metavar="FILE"),
    option("--figure", None, "draw the training steps' ratios, or how a step grows, or of exchange alone its messages: "
           "FILE.png and FILE.svg", type=output_file, metavar="FILE"),
    example="minilora bench --sizes tiny,small --peers torch --profile",
)  # fmt: skip
def bench(args: argparse.Namespace) -> int:
    """Time training steps and more, beside PyTorch's, JAX's and HIPS autograd's.

    The same shapes, data and threads, taking turns: only the ratios mean anything. All peers at all sizes take many
    minutes; Ctrl-C ends it with what has been measured.
    """
    from ..bench import benchmark, report

    chosen: dict[str, tuple[str, ...]] = {}
    for what, known in (("sizes", benchmark.SIZES), ("parts", benchmark.PARTS), ("peers", benchmark.PEERS)):
        chosen[what] = getattr(args, what)
        for name in chosen[what]:
            if name not in known:
                raise ValueError(f"--{what}: no {name!r}{did_you_mean(name, list(known))}")
    if not {"lora", "full"} & set(args.parts):
        if args.figure and not {"exchange", "scaling"} & set(args.parts):
            fix = "--parts must have lora, full, scaling or exchange"
            raise ValueError(f"--figure shows training steps, how they grow, or an exchange: {fix}")
        refuse_ignored(args, ["--profile"], "cannot be given without training steps: --parts must have lora or full")
    if not {"lora", "full", "memory"} & set(args.parts):
        refuse_ignored(
            args, ["--batch"], "cannot be given without training steps: --parts must have lora, full or memory"
        )
    stem = re.sub(r"\.(png|svg)$", "", str(args.figure))
    pictures = [("--figure", Path(f"{stem}.{kind}")) for kind in ("png", "svg") if args.figure]
    refuse_overwriting([*pictures, *([("--output", args.output)] if args.output else [])], [])
    record = benchmark.bench(
        **chosen, turns=args.repeats, backend=args.backend, batch=args.batch, with_profile=args.profile,
        with_demo=args.demo, progress=sys.stderr.isatty(),
    )  # fmt: skip
    if args.output:
        report.save(record, args.output)
    if args.figure:
        from ..bench import curves, figure
        from ..pictures import style

        drawn = curves.growth if "scaling" in args.parts else figure.messages
        style.save((figure.ratios if {"lora", "full"} & set(args.parts) else drawn)(record), stem)
    print(json.dumps(record) if args.json else report.table(record))
    return 130 if record.get("interrupted") else 0

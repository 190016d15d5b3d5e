"""`minilora gradcheck`."""

import argparse
import inspect
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import minilora as ml

from ..autograd.examples import EXAMPLES
from ..autograd.gradcheck import TOLERANCE
from ..autograd.ops import PRIMITIVES
from .options import SEED, command, one_of, option


@command(
    option("--primitive", None, "one primitive, entry by entry, in place of the whole table",
           type=one_of(*EXAMPLES), metavar="NAME"),
    option("--method", None, "one method in place of all three", type=one_of(*TOLERANCE), metavar="NAME"),
    SEED,
    example="minilora gradcheck --primitive gelu --method complex-step",
)  # fmt: skip
def gradcheck(args: argparse.Namespace) -> int:
    """Check every derivative by three other computations.

    None of them knows a derivative rule. Central differences and the complex step move one entry at a time, the
    directional test moves all of them at once. Every primitive is checked, then a whole transformer with LoRA. Exit
    code 1 when a check fails.
    """
    methods = [args.method] if args.method else list(TOLERANCE)
    if args.primitive:
        reports = [check_primitive(args.primitive, method, args.seed) for method in methods]
        print("\n\n".join(map(str, reports)))
        return 0 if all(reports) else 1
    print("The largest relative error, |tape - reference| / max |reference|, in float64\n")
    started = time.perf_counter()
    rows = print_checks("primitive", methods, EXAMPLES, lambda name, m: check_primitive(name, m, args.seed))
    print()
    function, groups = lora_transformer(args.seed)
    check = lambda group, m: ml.gradcheck(function, groups[group], m, rng=args.seed)
    rows += print_checks("LoRA transformer (2 blocks)", methods, groups, check)
    failed = rows.count(False)
    limits = ", ".join(f"{m} {TOLERANCE[m]:.0e}" for m in methods)
    print(f"\nTolerances: {limits}.")
    print("rounding: where the gradient is all but zero, the two differ by rounding alone.")
    print(f"{len(rows) - failed} of {len(rows)} pass, in {time.perf_counter() - started:.1f} s.")
    return 1 if failed else 0


def check_primitive(name: str, method: str, seed: int) -> Any:
    """The gradient report of a primitive's example, its inputs named as the example names them."""
    example = EXAMPLES[name]
    names = list(inspect.signature(example.call).parameters)[1:]
    function, inputs = example.function(PRIMITIVES[name]), example.inputs(np.random.default_rng(seed))
    return ml.gradcheck(function, inputs, method, names=names, rng=seed)


def lora_transformer(seed: int) -> tuple[Callable, dict[str, list]]:
    """A small transformer with LoRA on every linear layer: (loss function, {name: its tensors in all blocks}).

    Here the base weights want gradients as well, so that every derivative is checked; B is drawn, for at B = 0 the
    gradient of A would be zero.
    """
    rng = np.random.default_rng(seed)
    model: Any = ml.GPT(ml.GPTConfig(vocab_size=7, block_size=5, n_layer=2, n_head=2, n_embd=4), rng).astype("float64")
    ml.add_lora(model, ml.LoRAConfig(rank=2, alpha=1, target_modules=("*",)), rng)
    tokens, targets = rng.integers(0, 7, (2, 2, 5))
    groups: dict[str, list] = {}
    for name, p in model.named_parameters():
        p.data += rng.normal(0, 0.3, p.shape)  # away from zero, where a wrong gradient could hide
        p.requires_grad = True
        groups.setdefault(re.sub(r"^blocks\.\d+\.", "", name), []).append(p)
    return lambda *tensors: model.loss(tokens, targets), groups


def print_checks(title: str, methods: list[str], rows: Any, check: Callable) -> list[bool]:
    """A table with a line for each row and a column for each method; returns what passed."""
    print(f"{title:<28}" + "".join(f"{method:>14}" for method in methods))
    passed = []
    for row in rows:
        reports = [check(row, method) for method in methods]
        verdict = "pass" if all(reports) else "FAIL"
        errors = ["rounding" if r.passed and r.relative > r.tolerance else f"{r.relative:.1e}" for r in reports]
        print(f"{row:<28}" + "".join(f"{error:>14}" for error in errors) + f"  {verdict}", flush=True)
        passed.append(all(reports))
    return passed

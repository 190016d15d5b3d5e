"""`minilora count`."""

import argparse
import json
from pathlib import Path
from typing import Any

from ..nn.storage import load_arrays
from .options import command, names_in, option, refuse_ignored, refuse_other_methods, whole

TAKES = {  # which options a method takes, of those that only some take
    "lora": ("--rank", "--targets"),
    "dora": ("--rank", "--targets"),
    "lora-fa": ("--rank", "--targets"),
    "vera": ("--rank", "--targets"),
    "miss": ("--rank", "--targets"),
    "ia3": ("--targets",),
    "houlsby": ("--bottleneck", "--adapter-norm"),
    "pfeiffer": ("--bottleneck", "--adapter-norm"),
    "prompt": ("--tokens",),
    "prefix": ("--tokens",),
    "last-blocks": ("--blocks",),
}


@command(
    option("model", "base", "a model's name, such as gpt3-175b, a Hugging Face folder or config.json, a .gguf file, or "
           "a file of minilora's", nargs="?"),
    option("--method", "lora", "full, last-blocks, bitfit, prompt, prefix, houlsby, pfeiffer, lora, dora, "
           "lora-fa, vera, miss or ia3", metavar="NAME"),
    option("--rank", 4, "r of LoRA and what is made like it", type=whole(1), metavar="N"),
    option("--targets", "q_proj,v_proj", "layers to adapt, by commas (default of ia3 k_proj,v_proj,down_proj)",
           type=names_in, metavar="NAMES"),
    option("--bottleneck", 64, "the width of bottleneck adapters", type=whole(1), metavar="N"),
    option("--adapter-norm", False, "bottleneck adapters have a layer norm of their own", action="store_true"),
    option("--tokens", 20, "virtual tokens of prompt and prefix tuning", type=whole(1), metavar="N"),
    option("--blocks", 2, "how many blocks last-blocks trains", type=whole(1), metavar="N"),
    option("--batch", 1, "texts a training step", type=whole(1), metavar="N"),
    option("--length", None, "tokens a text (default the context, at most 2,048)", type=whole(1), metavar="N"),
    option("--bits", None, "a base weight: 32, 16, 8 or 4 (default 16; our own model 32)", type=whole(1), metavar="N"),
    option("--optimizer", "adamw", "adamw, adamw-16bit or sgd", metavar="NAME"),
    option("--engine", None, "what is kept for the backward pass: pytorch, flash or minilora", metavar="NAME"),
    option("--compare", False, "all methods side by side", action="store_true"),
    option("--paper", False, "the tables of the LoRA paper, by formula and as printed", action="store_true"),
    option("--json", False, "print JSON in place of tables", action="store_true"),
    example="minilora count gpt3-175b --method lora --rank 4 --targets q_proj,v_proj",
)  # fmt: skip
def count(args: argparse.Namespace) -> int:
    """Count what a method costs: parameters, checkpoint, memory, operations.

    From a model's architecture alone, exactly, for any model from our own to GPT-3.
    """
    from ..analysis import counting

    if args.paper:
        rest = [flag for flag, _ in count.options if flag not in ("--paper", "--json")]
        refuse_ignored(args, rest, "cannot be given with --paper, whose tables are fixed")
    elif args.compare:
        refuse_ignored(args, ["--method"], "cannot be given with --compare, which shows every method")
    elif args.model.endswith(".npz") and load_arrays(args.model, None)[1].get("kind") != "model":
        rest = ["--method", *(flag for flags in TAKES.values() for flag in flags)]
        refuse_ignored(args, dict.fromkeys(rest), f"cannot be given with {args.model}, which says what it trained")
    elif args.method in counting.METHODS:
        refuse_other_methods(args, args.method, TAKES)
    method, model = {} if args.compare else {"method": args.method}, described(args.model)
    elsewhere = ("command", "given", "traceback", "model", "method", "targets", "compare", "paper", "json")
    options = {name: value for name, value in vars(args).items() if name not in elsewhere}
    if "targets" in args.given or not (args.compare or args.method == "ia3"):
        options["target_modules"] = args.targets
    if args.paper:
        rows = {"rows": counting.paper_rows(), "savings": counting.savings()}
        print(json.dumps(rows) if args.json else counting.paper_table())
    elif args.json:
        print(json.dumps((counting.compare_records if args.compare else counting.count)(model, **method, **options)))
    else:
        print((counting.compare if args.compare else counting.table)(model, **method, **options))
    return 0


def described(name: str) -> Any:
    """What says the sizes of a model: its name, a file, or the architecture in a .gguf file."""
    path = Path(name)
    if path.suffix == ".gguf":
        from ..interop.gguf_file import open_gguf

        return open_gguf(path).architecture
    return str(path / "config.json") if path.is_dir() else name

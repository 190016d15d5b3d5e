"""What pretraining and fine-tuning share: a run to begin or to go on with, its end, and what is said of it."""

import argparse
import contextlib
import errno
import functools
import io
import itertools
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import minilora as ml

from ..adapters.qlora import QuantizedLinear
from ..adapters.state import base_parameters
from ..demo import quoted, sample
from ..nn.storage import load_arrays
from ..training.checkpoint import load_checkpoint, save_checkpoint
from ..training.classify import accuracy
from ..training.corpus import BUILT_IN
from ..training.examples import Examples
from ..training.loop import length_of
from ..training.pairs import LONGEST
from ..training.together import abort, own_rank, started, together
from .models import base_name, existing, load_model
from .options import refuse_ignored
from .outputs import claimed, refuse_overwriting
from .words import reason, say_error


def with_others(train: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """A command that trains, on as many processes as mpiexec has started; an error in one of them ends all."""

    @functools.wraps(train)
    def run(args: argparse.Namespace) -> int:
        if started() == 1:
            return train(args)
        with together() as rank, contextlib.redirect_stdout(io.StringIO() if rank else sys.stdout):
            try:
                return train(args)
            except BaseException as error:
                time.sleep(rank and 1)  # what is wrong for all, the first one says
                say_error(f"error: {f'process {rank}: ' if rank else ''}{reason(error)}")
                abort(2)
                raise

    return run


def resume(args: argparse.Namespace) -> ml.Run:
    """The run in a checkpoint. Raises ValueError when an option is given that the checkpoint answers."""
    free = ("--resume", "--checkpoint", "--checkpoint-every", "--output", "--backend")
    settled = [flag for flag, _ in args.command.options if flag not in free]
    refuse_ignored(args, settled, "cannot change when a run goes on; the checkpoint holds them")
    path = existing(args.resume, "checkpoint", "Ctrl-C in a training writes one")
    header, base = load_arrays(path, "checkpoint")[1], None
    if header.get("base") is not None:  # the checkpoint holds what was trained, and not the model it was trained on
        notes = header["notes"]
        base = load_model(base_name(notes), notes["quantize"], notes["dtype"])
    run = load_checkpoint(path, base=base)
    if "checkpoint_every" in args.given:
        run.settings.checkpoint_every = args.checkpoint_every
    return run


def read_corpus(name: str, model: Any, window: int | None = None) -> Any:
    """A text, or the pairs in a .jsonl file, long enough and not too long for a model."""
    if not name.endswith(".jsonl"):
        corpus = ml.load_corpus(name, model.tokenizer)
        return corpus.require(length_of("--corpus", model, corpus, window))
    pairs = ml.load_pairs(name, model.tokenizer, min(LONGEST, model.context))
    return pairs.require(length_of("--corpus", model, pairs))


def read_labels(name: str | None, model: Any, virtual: int = 0) -> Examples:
    """Texts with labels: those of a .jsonl file, or names of Unicode's characters with their categories.

    virtual: how many virtual tokens a method will take from the text; whether there are so many, it says itself.
    """
    longest = min(LONGEST, max(model.context - virtual, 1))
    if name is None:
        return ml.unicode_categories(model.tokenizer, longest)
    if not name.endswith(".jsonl"):
        raise ValueError(f"--task classify --corpus {name}: expected a .jsonl file, with a text and a label a line")
    return ml.load_labels(name, model.tokenizer, model.labels or None, longest).require(longest)


def read_task(args: argparse.Namespace, model: Any) -> Examples:
    """Questions of a task with their answers, none longer than the model's context."""
    from ..training.tasks import load_task

    refuse_ignored(args, ["--corpus"], f"cannot be given with --task {args.task}, which makes its own questions")
    questions = load_task(args.task, model.tokenizer, seed=args.seed)
    return questions.require(length_of(f"--task {args.task}", model, questions))


def unit(run: ml.Run) -> str:
    """What the loss of a run is the mean over."""
    if isinstance(run.corpus, Examples):
        return "label" if run.corpus.labels else "token of the answers"
    return run.corpus.unit.removesuffix("s")


def refuse_losses(args: argparse.Namespace, corpus: str, files: list[Path], model: str | Path | None = None) -> None:
    """Raises ValueError when one of the files that are going to be written is one that is read, or is another one.

    files: --output, and what is written beside it. A run may go on in its own checkpoint.
    """
    read = [("the corpus", None if corpus in BUILT_IN else corpus), ("the model", model)]
    written = [("--output" if n == 0 else "what is written beside --output,", file) for n, file in enumerate(files)]
    refuse_overwriting(written, [*read, ("the checkpoint", args.resume)])
    refuse_overwriting([*written, *([("--checkpoint", args.checkpoint)] if args.checkpoint else [])], read)


def describe_run(run: ml.Run, method: str) -> None:
    """What is trained on what: three lines."""
    model, corpus, s = run.model, run.corpus, run.settings
    trained = model.count(trainable=True)
    total = sum(p.size for p in base_parameters(model).values())
    total += sum(layer.quantized.size for _, layer in model.named_modules() if isinstance(layer, QuantizedLinear))
    examples = isinstance(corpus, Examples)
    extent = corpus.extent if examples else f"{len(corpus.train):,} {corpus.unit}, {len(corpus.validation):,} held out"
    print(f"corpus            {corpus.name}: {extent}")
    print(f"training          {method}: {trained:,} trained, base model {total:,} ({100 * trained / total:.1f} %)")
    length = length_of("train", model, corpus, s.window)
    batch = f"{s.batch_size} {corpus.what}" if examples else f"{s.batch_size} x {length} {corpus.unit}"
    print(f"steps             {s.steps:,} of {f'{s.accumulate} x ' if s.accumulate > 1 else ''}{batch}, "
          f"learning rate {s.lr:g}, seed {s.seed}", flush=True)  # fmt: skip


def finish(
    args: argparse.Namespace, run: ml.Run, output: Path, save: Callable[[], None], tell: Callable[[], None]
) -> int:
    """Train to the end, `save`, `tell`, and then remove the checkpoint that nobody named: -> the exit code.

    At Ctrl-C, and where something fails, say what is kept and how to go on. Of processes that train together the first
    saves and tells; the others only train.
    """
    if own_rank():
        with contextlib.suppress(KeyboardInterrupt):
            ml.train(run, progress=False)
        return 0
    with checkpoint_place(args, output) as checkpoint:
        ours = None if args.checkpoint or args.resume else checkpoint
        try:
            ml.train(run, checkpoint, progress=sys.stderr.isatty())
        except KeyboardInterrupt:
            what_is_kept = kept(args, run, checkpoint, output)
            say_error(f"stopped after step {run.step:,} of {run.settings.steps:,}{what_is_kept}")
            return 130
        except Exception as error:
            if run.saved:
                error.add_note(f"step {run.saved:,} is kept in {checkpoint}")
            raise
        try:
            save_in_the_room_of(ours, run, save)
        except BaseException as error:
            error.add_note(f"the training is done{kept(args, run, checkpoint, output)}")
            raise
        try:
            tell()
        finally:
            if ours:
                ours.unlink(missing_ok=True)
    return 0


def save_in_the_room_of(checkpoint: Path | None, run: ml.Run, save: Callable[[], None]) -> None:
    """Save the result; on a full disk it takes the room of a checkpoint that nobody named."""
    try:
        save()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not checkpoint or run.saved is None:
            raise
        checkpoint.unlink()
        try:
            save()
        except BaseException:
            save_checkpoint(run, checkpoint)  # where it had room before
            raise


def kept(args: argparse.Namespace, run: ml.Run, checkpoint: Path | None, output: Path) -> str:
    """What of a run is in its checkpoint, and the command that goes on with it; to stand after other words."""
    place = checkpoint if run.saved is not None else args.resume  # a run that went on is still where it came from
    if place is None:
        return ", and nothing of it is saved"
    saved = "" if run.saved is None else " and saved" if run.saved == run.step else f"; its step {run.saved:,} is saved"
    words = f"minilora {args.command.run.__name__} --resume {shlex.quote(str(place))}"
    return f"{saved}; to go on: {words} --output {shlex.quote(str(output))}"


@contextlib.contextmanager
def checkpoint_place(args: argparse.Namespace, output: Path) -> Iterator[Path | None]:
    """Where a run is kept on the way: in the file that was named, else beside the output under a name that is free.

    The file and the output are this process's while the block lasts. None: there is no beside, the output is a device.
    """
    named = args.checkpoint or (Path(args.resume) if args.resume else None)
    with contextlib.ExitStack() as stack:
        stack.enter_context(claimed(output, *([named] if named else [])))
        if named or (output.exists() and not output.is_file()):
            yield named
            return
        for n in itertools.count(1):
            place = output.with_name(f"{output.stem}.checkpoint{'' if n == 1 else f'-{n}'}.npz")
            if os.path.lexists(place):
                print(f"kept              {place}, of an earlier run; --resume goes on with it")
                continue
            with contextlib.suppress(ValueError):  # another run has it, of another output whose name begins like this
                stack.enter_context(claimed(place))
                break
        yield place


def say_accuracy(run: ml.Run) -> None:
    """Print how many held-out texts get their own label, and how many would by the label that most of them have."""
    most = Counter(int(targets[-1]) for _, targets in run.corpus.validation).most_common(1)[0]
    share = most[1] / len(run.corpus.validation)
    print(
        f"right labels      {accuracy(run.model, run.corpus)}; always {run.model.labels[most[0]]}: {100 * share:.1f} %"
    )


def say_sample(model: ml.GPT, seed: int) -> None:
    """Print a few lines that the model writes."""
    print("a sample", flush=True)
    print(quoted(sample(model, "", 200, seed), 5))

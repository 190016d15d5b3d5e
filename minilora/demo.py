"""`minilora demo`: LoRA told as a story in eight steps, for a terminal of 80 columns in front of a class."""

import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import minilora as ml

from .adapters.lora import lora_layers
from .analysis.rank import energy_rank, singular_values
from .nn.layers import Linear

RANK = 8
LEARNING_RATE = {"lora": 1e-2, "full": 6e-3}  # the best of 3e-3, 1e-2, 2e-2 and of 3e-3, 6e-3 after 200 steps on names
PROMPTS = ("LATIN SMALL LETTER ", "GREEK ", "MUSICAL ")
SHOWN = "blocks.2.attn.v_proj"  # the matrix that the last figure shows


@dataclass
class Story:
    """What the steps hand on: the runs by name, the model before them, and what was measured."""

    steps: int
    seed: int
    progress: bool
    corpus: Any = None
    before: dict[str, Any] = field(default_factory=dict)  # the base model's state dict
    base_loss: float = 0.0
    runs: dict[str, ml.Run] = field(default_factory=dict)
    deltas: dict[str, dict[str, Any]] = field(default_factory=dict)  # run -> {matrix name: Delta W}


def tell(output: Path, steps: int = 200, seed: int = 0, progress: bool = False) -> list[Path]:
    """Run the whole demo: -> the figures' paths. Raises OSError when `output` cannot be written to."""
    started = time.perf_counter()
    story = Story(steps, seed, progress)
    chapters: list[Callable[[Story], None]] = [
        meet_the_base_model,
        check_the_gradients,
        count_parameters,
        train_lora,
        train_all_weights,
        merge,
        look_at_singular_values,
    ]
    for n, chapter in enumerate(chapters, 1):
        title, sentence = (chapter.__doc__ or "").split("\n\n", 1)
        say_title(n, title, " ".join(sentence.split()))
        chapter(story)
    say_title(len(chapters) + 1, "Three figures", "They show what the numbers above say.")
    paths = draw(story, output)
    print("\n".join(f"  {path}" for path in paths))
    print(f"\n  All of it took {time.perf_counter() - started:.0f} s. The figures are in {output}.")
    return paths


def say_title(n: int, title: str, sentence: str) -> None:
    """The head of a step: its number and title, and what it shows in one sentence."""
    print(f"\n{n}. {title.rstrip('.')}\n{textwrap.fill(sentence, 78)}\n", flush=True)


def say(label: str, value: str) -> None:
    """One fact on one line."""
    print(f"  {label:<34}{value}", flush=True)


def meet_the_base_model(story: Story) -> None:
    """The base model

    It has read the documentation of Python, and writes like it; the names of Unicode characters are new to it.
    """
    base = ml.load_model("base")
    story.corpus = ml.load_corpus("unicode-names")
    story.before = base.state_dict()
    story.base_loss = ml.evaluate(base, story.corpus, ml.Settings().evaluation_windows)
    c = base.config
    say("transformer", f"{c.n_layer} layers, {c.n_head} heads, width {c.n_embd}, context {c.block_size}")
    say("parameters", f"{base.count():,}")
    say("loss on names it has never seen", f"{story.base_loss:.2f} nats per character")
    print("\n  what it writes\n" + quoted(sample(base, "The class ", 210, story.seed), 3))
    continue_names(base, story.seed)


def sample(model: Any, prompt: str, count: int, seed: int) -> str:
    """A prompt and what the model writes after it."""
    tokenizer = model.tokenizer
    text = model.generate(tokenizer.encode("\n" + prompt), count, temperature=0.7, rng=seed, stop=tokenizer.eos)
    return tokenizer.decode(text, skip_special=True).strip("\n")


def quoted(text: str, most: int) -> str:
    """At most so many lines of a text for a terminal of 80 columns, behind a bar."""
    lines = [part for line in text.strip("\n").split("\n") for part in textwrap.wrap(line, 72) or [""]]
    return "\n".join(f"  | {line}".rstrip() for line in lines[:most])


def continue_names(model: ml.GPT, seed: int) -> None:
    """How the model ends, twice each, the first line of names that are begun for it."""
    print("\n  how it goes on with a name that is begun (before the dots)", flush=True)
    for prompt in PROMPTS:
        begun = np.tile(ml.encode("\n" + prompt), (2, 1))  # (2, T)
        for tokens in model.generate(begun, 50, temperature=0.8, rng=seed):
            ending = ml.decode(tokens[begun.shape[1] :]).partition("\n")[0]
            print(f"  | {prompt}... {ending}"[:79].rstrip(), flush=True)


def check_the_gradients(story: Story) -> None:
    """The gradients of a LoRA layer

    Moving each entry by a small h changes the output as the derivative says: central differences agree with the tape.
    """
    rng = np.random.default_rng(story.seed)
    x, W, b, A, B = (rng.standard_normal(shape) for shape in ((4, 6), (5, 6), (5,), (2, 6), (5, 2)))
    layer = lambda x, W, b, A, B: ml.ops.lora_linear(x, W, b, A, B, 2.0)
    report = ml.gradcheck(layer, [x, W, b, A, B], names=["x", "W", "b", "A", "B"])
    print(textwrap.indent(str(report), " "))
    if not report:
        raise ArithmeticError("the gradient check of the LoRA layer failed: see the table above")


def adapted(story: Story) -> ml.GPT:
    """The base model with LoRA of rank 8 on all its linear layers."""
    return ml.add_lora(ml.load_model("base"), ml.LoRAConfig(RANK, target_modules=("*",)), rng=story.seed)


def count_parameters(story: Story) -> None:
    """What LoRA trains

    Beside each frozen W (d_out, d_in) stand two thin matrices, B (d_out, r) and A (r, d_in); only they are trained.
    """
    model = adapted(story)
    seen: dict[str, list] = {}
    for name, layer in lora_layers(model).items():
        seen.setdefault(name.rpartition(".")[2], []).append(layer)
    print(f"  {'matrix':<12}{'W':>12}{'numbers in W':>15}{'in B and A, r = 8':>20}{'share':>9}")
    for kind, layers in seen.items():
        w, ab = layers[0].weight, layers[0].lora_A.size + layers[0].lora_B.size
        print(f"  {kind:<12}{f'{w.shape[0]} x {w.shape[1]}':>12}{w.size:>15,}{ab:>20,}{100 * ab / w.size:>8.1f}%")
    trained, total = model.count(trainable=True), len_of(story.before)
    print()
    say("LoRA trains, in all layers", f"{trained:,} of {total:,} parameters, {100 * trained / total:.1f} %")
    say("an adapter file holds", f"{trained * 4 / 1024:,.0f} KiB; the whole model is {total * 4 / 1024:,.0f} KiB")


def len_of(state: dict[str, Any]) -> int:
    """How many numbers a state dict holds."""
    return sum(value.size for value in state.values())


def train(story: Story, name: str, model: ml.GPT, lr: float) -> None:
    """Train on the names of Unicode characters, with a line for every quarter of the way."""
    settings = ml.Settings(story.steps, lr=lr, evaluate_every=max(1, story.steps // 16),
                           warmup=min(20, story.steps // 2), seed=story.seed)  # fmt: skip
    run = ml.Run(model, story.corpus, settings)
    started = time.perf_counter()
    ml.train(run, progress=story.progress)
    seconds = time.perf_counter() - started
    curve = run.validation
    marks = sorted({round(i * (len(curve["step"]) - 1) / 4) for i in range(5)})
    print("  step              " + "".join(f"{curve['step'][i]:>8}" for i in marks))
    print("  validation loss   " + "".join(f"{curve['loss'][i]:>8.2f}" for i in marks) + "  nats/character\n")
    say("loss, before and after", f"{story.base_loss:.2f} -> {curve['loss'][-1]:.2f}")
    say("time", f"{seconds:.0f} s for {run.step} steps of {settings.batch_size} x {model.config.block_size} characters")
    story.runs[name] = run


def train_lora(story: Story) -> None:
    """Training with LoRA

    The loss on names it has not seen falls, though all the weights of the base model stay as they were.
    """
    model = adapted(story)
    train(story, "LoRA", model, LEARNING_RATE["lora"])
    story.deltas["LoRA"] = ml.delta_weights(model)
    continue_names(model, story.seed)


def train_all_weights(story: Story) -> None:
    """Training all weights, for comparison

    The same text, the same number of steps, and every parameter free to move: how much does the thin update give away?
    """
    model = ml.load_model("base")
    train(story, "all weights", model, LEARNING_RATE["full"])
    story.deltas["all weights"] = {
        name: module.weight.data - story.before[f"{name}.weight"]
        for name, module in model.named_modules()
        if isinstance(module, Linear)
    }
    continue_names(model, story.seed)


def merge(story: Story) -> None:
    """Merging

    Adding (alpha/r) B A into W gives a plain model with the same outputs: adapted text at the price of the base model.
    """
    model = story.runs["LoRA"].model
    tokens = story.corpus.validation_windows(model.config.block_size, 8)[0]
    with ml.no_grad():
        apart = model(tokens).numpy()  # (B, T, V)
        ml.merge_lora(model)
        merged = model(tokens).numpy()
        ml.unmerge_lora(model)
        again = model(tokens).numpy()
    say("largest difference in outputs", f"{np.abs(merged - apart).max():.1e}")
    say("largest output", f"{np.abs(apart).max():.1f}; float32 carries about 7 digits")
    say("after unmerging again", "every bit as before" if np.array_equal(again, apart) else "not the same bits")


def look_at_singular_values(story: Story) -> None:
    """The singular values of the change

    LoRA's change has rank 8 by construction; the change that training all weights makes was free to be of any rank.
    """
    title = f"of Delta W, mean of {len(story.deltas['LoRA'])} matrices"
    print(f"  {title:<34}{'LoRA':>12}{'all weights':>16}")
    spectra = {run: [singular_values(delta) for delta in deltas.values()] for run, deltas in story.deltas.items()}

    def row(label: str, value: Callable[[np.ndarray], float], style: str) -> None:
        print(f"  {label:<34}" + "".join(f"{np.mean([value(s) for s in all_of]):>{width}{style}}"
              for (_, all_of), width in zip(spectra.items(), (12, 16), strict=True)))  # fmt: skip

    for n in (1, 2, 4, RANK, RANK + 1, 32, 128):
        row(f"singular value {n}", lambda s, n=n: s[n - 1], ".4f")  # type: ignore[misc]
    row("directions for 90 % of the change", lambda s: energy_rank(s, 0.9), ".1f")


def draw(story: Story, output: Path) -> list[Path]:
    """The three figures, as PNG and SVG."""
    from .pictures import style, training

    curves = {name: run.validation for name, run in story.runs.items()}
    trained = {name: run.model.count(trainable=True) for name, run in story.runs.items()}
    spectra = {name: [singular_values(d) for d in deltas.values()] for name, deltas in story.deltas.items()}
    layer, before = lora_layers(story.runs["LoRA"].model)[SHOWN], ml.to_numpy(story.before[f"{SHOWN}.weight"])
    pictures = {
        "loss": training.loss_curves(curves, story.base_loss, trained),
        "singular_values": training.spectra(spectra),
        "lora_matrix": training.matrices(before, layer.lora_B.numpy(), layer.lora_A.numpy(), layer.config.scale, SHOWN),
    }
    return [path for name, picture in pictures.items() for path in style.save(picture, output / name)]

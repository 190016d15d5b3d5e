"""The lecture's figures by name, each drawn from a study's records alone (`studies.load_records`), or from a formula.

    draw()                              every figure, from figures/data into figures
    draw(["ranks"], "my/data", "my")    one
    draw(["rates"], corpus="python-code")    one that shows a single text, for another of the texts in its records
    FIGURES                             {figure: (the studies it needs, the function that draws it)}

The title of a figure is its conclusion, computed from the records. Two means over seeds are called different only where
their error bars do not overlap; else the title says that there is no clear difference. An error bar that a caption
calls the spread over seeds is half the distance from the least to the most, to each side of the mean (`SPREAD`); bands,
and bars over matrices, reach from the least to the most. A figure carries its lesson as its label, and `caption` puts
it behind what the figure shows.
"""

import itertools
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..nn.files import write_beside
from ..nn.storage import blaming
from ..studies.records import record_path
from ..studies.studies import load_records
from . import (
    accounts,
    alternatives,
    amounts,
    asymmetry,
    change,
    choices,
    comparison,
    diagrams,
    forgetting,
    images,
    intruders,
    learning,
    letters,
    ranks,
    rates,
    real,
    resources,
    rewards,
    segments,
)
from .style import save

FIGURES: dict[str, tuple[tuple[str, ...], Callable[..., Figure]]] = {
    "lora-layer": ((), diagrams.lora_layer),
    "lora-tape": ((), diagrams.lora_tape),
    "loss-curves": (("methods",), learning.loss_curves),
    "forgetting": (("forgetting",), forgetting.frontier),
    "forgetting-one-rate": (("methods",), forgetting.one_rate),
    "costs": (("methods",), learning.costs),
    "spectra": (("spectra",), ranks.spectra),
    "energy": (("spectra",), ranks.energy),
    "truncation": (("truncation",), ranks.truncation),
    "similarity": (("subspaces",), ranks.similarity),
    "amplification": (("subspaces",), ranks.amplification),
    "intruders": (("intruders",), intruders.intruders),
    "intruders-shrunk": (("intruders",), intruders.intruders_shrunk),
    "rank-use": (("rank-use",), change.rank_use),
    "matrices": (("matrices",), choices.matrices),
    "ranks": (("ranks",), choices.rank_choice),
    "rates": (("rates",), rates.rates),
    "scaling": (("rates",), rates.scaling),
    "starts": (("starts",), choices.starts),
    "asymmetry": (("asymmetry",), asymmetry.asymmetry),
    "batches": (("batches",), amounts.batches),
    "data": (("data",), amounts.data),
    "alternatives": (("methods",), alternatives.alternatives),
    "comparison": (("methods",), comparison.comparison),
    "sizes": (("sizes",), alternatives.sizes),
    "bits": (("bits",), resources.bits),
    "sixteen-bits": (("sixteen-bits",), change.sixteen_bits),
    "tasks": (("tasks",), forgetting.tasks),
    "latency": (("latency",), resources.latency),
    "step-memory": (("memory",), resources.step_memory),
    "rewards": (("rewards",), rewards.rewards),
    "segments": (("segments",), segments.segments),
    "segmented": (("segments",), segments.segmented),
    "images": (("images",), images.images),
    "real": (("real",), real.right_answers),
    "real-forgetting": (("real",), real.english_forgotten),
    "style": (("style",), letters.style),
    "style-letters": (("style",), letters.style_letters),
    "style-blocks": (("style-blocks",), letters.style_blocks),
    "style-strength": (("style-mixed",), letters.style_strength),
    "style-two-fonts": (("style-mixed",), letters.style_two_fonts),
    "parameters": ((), accounts.parameter_counts),
    "memory": ((), accounts.memory),
    "exchange": ((), accounts.exchange),
}

# Studies whose figures show one text, and the text they show where none is named.
OF_ONE_TEXT = (
    "rates",
    "starts",
    "batches",
    "data",
    "spectra",
    "truncation",
    "subspaces",
    "sizes",
    "rank-use",
    "sixteen-bits",
)
CORPUS = "unicode-names"

SPREAD = " Spread: half the distance from the least seed to the most, drawn to each side of the mean."
CAPTIONS: dict[str, str] = {
    "lora-layer": "A LoRA layer: blue with a solid edge is trained, grey with a dashed edge is frozen.",
    "lora-tape": (
        "The tape of a LoRA layer and of a frozen layer after it, recorded while drawing, beside the tape of the "
        "same layers fully trained: each row is one vjp, and the arrays that it keeps for the backward pass."
    ),
    "loss-curves": (
        "Validation loss on the new text while fine-tuning; lines are means over seeds, bands reach from the "
        "least to the most."
    ),
    "forgetting": (
        "The least loss on the old text (what the base model was trained on) for each loss on the new one, over "
        "learning rates and steps: a run that stops early counts. A line is the mean over seeds of each seed's "
        "lower-left envelope, as far to the left as every seed gets; bands reach from the least to the most. Star: the "
        "base. A method forgets less where its line lies below and the bands part. full + pull: with weight decay "
        "towards the base. Every method has four or five rates. Biderman et al. 2024 "
        "(section 4.3) saw LoRA and full fine-tuning of 7 billion parameters on about one such curve."
    ),
    "forgetting-one-rate": (
        "Loss on the new text and on the old text, before fine-tuning (star) and after, each method at the one "
        "learning rate that is best for the new text; error bars are the spread over seeds. Where who forgets more "
        "has learned more, too, this is no answer: `forgetting` compares at matched loss."
    ),
    "costs": (
        "Seconds of a training step, memory of training and bytes to store for a task, as measured on this model."
    ),
    "spectra": (
        "Singular values of every adapted matrix's change, each over the largest of its matrix: medians over "
        "matrices and seeds, the bands hold the middle 80 %. Random: Gaussian matrices of the same shape and "
        "norm."
    ),
    "energy": (
        "The share of the squared Frobenius norm of the change that its best approximation of rank r holds: means "
        "over matrices and seeds, the bands hold the middle 80 %."
    ),
    "truncation": (
        "Validation loss when full fine-tuning's change is cut to its best approximation of rank r (0: left out), "
        "and of LoRA trained at rank r; error bars are the spread over seeds."
    ),
    "similarity": (
        "Subspace similarity (Hu et al. 2021, eq. 4), 1 where one subspace holds the other, 0 where they are "
        "orthogonal, of the first i and the first j singular directions of A (right) and of B (left): between "
        "LoRA of ranks 8 and 64, between two seeds at rank 64, and between rank 64 and a random matrix. Means "
        "over matrices; the numbers are the first directions and the first eight. White: no more than at random."
    ),
    "amplification": (
        "Left: how much of the frozen W lies in the first 4 singular directions of W itself, of LoRA's change and "
        "of a random matrix (Hu et al. 2021, table 7). Right: how much larger the change is than W in the "
        "change's directions. Bars are means over matrices; each dot is a matrix."
    ),
    "intruders": (
        "Intruder dimensions (Shuttleworth et al. 2024, definition 3.1): singular vectors among the first ten of the "
        "tuned matrix whose cosine with every singular vector of the base matrix is below one half. Means over "
        "matrices and seeds, a large mark for each learning rate up to the best, small ones for its seeds. "
        "The grey line is the lowest loss that both methods reach with every seed."
    ),
    "intruders-shrunk": (
        "Losses of LoRA of rank 8 at its best rate as a part of every tuned matrix is made weaker: its intruders "
        "(Shuttleworth et al. 2024, section 5), as many of the strongest other directions, all of ΔW (0.95 and 0.9, "
        "too), or what of ΔW lies outside the intruders' left directions; error bars are the spread over seeds."
    ),
    "rank-use": (
        "Effective rank (Roy & Vetterli 2007) and stable rank of ΔW against LoRA's rank r, at one learning rate and a "
        "constant alpha / r, beside products of random A and B and full fine-tuning (dashed); the diagonal is r. "
        "Means over matrices and seeds; error bars are the spread over seeds."
    ),
    "matrices": (
        "Validation loss after LoRA on different matrices, at one number of trained parameters; error bars are "
        "the spread over seeds."
    ),
    "ranks": "Validation loss after LoRA on all matrices, against its rank; error bars are the spread over seeds.",
    "rates": (
        "Validation loss against the learning rate, on a grid of factor 1.5, for LoRA of rank 8 and full fine-tuning; "
        "error bars are the spread over seeds. Upright bands reach from the least to the most of the seeds' best "
        "rates, each the lowest point of a parabola through a seed's losses over log(rate)."
    ),
    "scaling": (
        "Left: LoRA's best learning rate against its rank, with alpha constant (scale alpha / r), with alpha = 2r, and "
        "with rsLoRA (scale as 1 / √r, between the two), which agree at r = 8. Right: the loss at the rank's own best "
        "rate of the grid (filled), and at the one that "
        "is best at r = 8 (hollow). Points are means over seeds, bars reach from the least to the most."
    ),
    "starts": (
        "Three ways to begin: left the loss at step 0 and after training, right the norms of the gradients of all "
        "A and all B at step 0, of one seed; error bars are the spread over seeds."
    ),
    "asymmetry": (
        "Validation loss of LoRA of rank 8 with both factors trained, begun with A random and B zero or the other way "
        "round; and of B or A trained alone under the other one, random and frozen, at rank 8 and at rank 16, which "
        "has as many parameters as both; error bars are the spread over seeds."
    ),
    "batches": (
        "Left, validation loss against the number of windows in a batch: as many windows in all, so the larger the "
        "batch, the fewer the steps; each at its own best learning rate. Right, how far LoRA's loss is above full "
        "fine-tuning's on the same batches; hollow: batches of 8 in as few steps as the largest takes. Error bars are "
        "the spread over seeds."
    ),
    "data": (
        "Validation loss against the amount of training text, put together for each seed from blocks of 500 "
        "characters from all over it: left at the end of training, right at the step that is best on windows halfway "
        "between those told of; by these the learning rate is chosen, too, for each amount. Dashed: the untouched "
        "base. Error bars are the spread over seeds; methods are compared on the same text."
    ),
    "alternatives": (
        "Validation loss of every method at its own best learning rate; error bars are the spread over seeds. Blue "
        "circles: LoRA, its variants and other updates of low rank; red squares: weights of the base itself; green "
        "diamonds: bottleneck adapters; purple triangles: virtual tokens; an orange one: IA3."
    ),
    "comparison": (
        "The methods of our table that PEFT's public comparison has, too, the best on top: by validation loss on our "
        "texts (left and right), and by right answers of Llama-3.2-3B, trained on MetaMathQA, to the 1,319 test "
        "questions of GSM8K (middle; huggingface/peft, method_comparison/MetaMathQA/results, June 2025 to July 2026)."
    ),
    "sizes": (
        "Validation loss against the number of trained parameters (Hu et al. 2021, figure 2), each method at the best "
        "learning rate of its middle size; error bars are the spread over seeds."
    ),
    "bits": (
        "Loss on the old text, which the base model was trained on, with its linear layers held in few bits: before "
        "(squares) and after (circles) LoRA of rank 8 is trained on them, and with that merged and quantised again "
        "(diamonds). Bits a weight count the scales, too."
    ),
    "sixteen-bits": (
        "LoRA's ΔW merged in 16 bits: shares of the best rate's, and what other rates trained. Left the entries that "
        "rounding leaves nothing of; right how much lower the loss on the new text is than the base's, over how much "
        "lower it is with the sum in float32 (of the best rate; error bars are the spread over seeds)."
    ),
    "tasks": (
        "Loss in nats per character on three texts after each of three stages: one model fine-tuned on one text after "
        "the other, at the rate that is best for the stage's own text (in sequence), and where it is shown at the one "
        "that is best for the mean over all texts so far (gentle); right the base model with an adapter for each text, "
        "switched for it. Means over seeds."
    ),
    "latency": (
        "Time of a generated token after a cached text and of a forward pass over the text, as ratios to the base "
        "model's in the same run (Hu et al. 2021, table 1): medians over turns. Bold on colour: 1 is "
        "further from the median than half the distance between the quartiles of the turns' ratios."
    ),
    "step-memory": (
        "Memory of a training step with AdamW on texts of 128 tokens, eight of them on the shipped model and one at "
        "GPT-2 small's shape: LoRA of rank 8 on q and v, and on all matrices, beside full fine-tuning."
    ),
    "rewards": (
        "Teaching the shipped model, once it writes names of Unicode characters, to write those with the word WITH: "
        "from rewards for its own (REINFORCE) and from examples, each size at its own best learning rate. Left the "
        "share of right names against the number of trained parameters (LoRA of rank 1 on one matrix, on a block, and "
        "on all, of ranks 2, 8 and 32, and all weights), right against the step. Points and lines are means; bars and "
        "bands reach from the least to the most over the seeds."
    ),
    "segments": (
        "A segmenter that was trained on shapes, on cracks in brickwork: 1 − IoU (intersection over union of the "
        "pixels found and meant, asked by a point) on held-out scenes; each method at its best rate of a grid of "
        "factor 2, in batches mirrored at random; error bars are the spread over seeds. Right: the least error on "
        "shapes for each error on cracks, over numbers of examples and steps; lines are means over seeds, bands reach "
        "from the least to the most."
    ),
    "segmented": (
        "The first held-out scene of each kind with its prompt, and what the segmenter trained on shapes finds before "
        "and after LoRA of rank 8 on all its linear layers, cracks in batches that are mirrored; blue is inside."
    ),
    "real": (
        "SmolLM2 with 135 million parameters, in 4 bits: the share of held-out questions in SQL that it answers "
        "rightly, before and after LoRA. Its SQL is run in sqlite3 on several databases beside the known query."
    ),
    "real-forgetting": (
        "SmolLM2's loss on English prose (the language reference of Python, without its code) against its loss on "
        "held-out answers in SQL, along a training by LoRA at each learning rate; percentages are right answers, by "
        "execution."
    ),
    "style": (
        "The model that draws letters is taught a font that it has never seen from 10, 26 or 52 of its glyphs, by LoRA "
        "of rank 4 in every linear layer and by full fine-tuning, each at the best of several rates on 26 of another "
        "font, in 150 steps of 32 pictures and, hollow, in more of them; then it draws the other characters, which so "
        "are others for each number, led away from what the base draws. Shares of pictures in which the two judges "
        "(vision transformers that come with the package) read the right character and see the right font of 20; error "
        "bars are the spread over seeds, each a font: STIX Bold Italic, DejaVu Serif Bold Italic, Computer Modern Bold."
        " Dashed: the base, and what the judges say of the font's own glyphs."
    ),
    "style-letters": (
        "Characters that were not among the 26 shown: as the base draws them, as it draws them from the same noise "
        "with LoRA, and as the font has them."
    ),
    "style-blocks": (
        "LoRA of rank 4, at one rate, in every two of six blocks, on the diagonal in one alone, beside them in all and "
        "in none: shares of pictures of other characters that the judges read right, and see in the right font; means "
        "over three seeds, each a font. Clear is what is further apart than both spreads, half of least to most. "
        "Frenkel et al. 2024 and Li et al. 2024 find style and content in different blocks of larger models."
    ),
    "style-strength": (
        "Left: shares of right letters, and of the right font, with the adapter's update times a number. Right: the "
        "first blocks' part of one font's adapter with the other blocks' part of another's; error bars are the spread "
        "over seeds, each with fonts of its own."
    ),
    "style-two-fonts": (
        "Adapters for a bold and for an italic font of one family, their mean and their sum, and one that was taught "
        "the bold italic (both): per cent of pictures in which the judges see the bold italic, and read the right "
        "character; error bars are the spread over seeds, each a family: DejaVu Serif, STIX, DejaVu Sans."
    ),
    "parameters": (
        "Trained parameters, computed from the architectures: full fine-tuning; bottleneck adapters of width 64 "
        "(Houlsby et al. 2019); LoRA of rank 4 on q and v; a prompt of 20 tokens (Lester et al. 2021)."
    ),
    "images": (
        "A vision transformer that reads letters and figures learns 24 Greek letters, in ten fonts. Left, errors on "
        "three fonts that it never saw; each method at the rate of its grid that errs least on three others; error "
        "bars are the spread over seeds. Right, from the most pictures, errors on the letters and figures that it "
        "knew, read by its old head, where so much of Greek is still wrong: the least over rates and steps; bands "
        "reach from the least to the most. One forgets less than another where, at the least error that all reach, "
        "its band lies below."
    ),
    "memory": (
        "Memory of a training step by part, computed, in 10^9 bytes: full fine-tuning in 16-bit mixed precision, "
        "and LoRA on a frozen base held in 16, 8 and 4 bits."
    ),
    "exchange": (
        "Time that nodes which train together need to add their gradients, over the time of their computing, from a "
        "model of messages (a start and a time a byte) for networks of 1, 10 and 100 Gbit/s that start a message in "
        "50, 20 and 2 microseconds; one text of 2,048 tokens a node and step, nothing sent while it computes."
    ),
}


def caption(name: str, figure: Figure) -> str:
    """What a figure shows, and what these records say: the text to print under it."""
    spread = SPREAD if "spread over seeds" in CAPTIONS[name] else ""
    return f"{CAPTIONS[name]}{spread} {figure.get_label()}"


def make(name: str, data_folder: str | Path | None = None, corpus: str = CORPUS) -> Figure:
    """One figure from the records in a folder, by default the committed ones; of one text, where it shows only one.

    Raises ValueError for a figure that does not exist and for records that do not fit; FileNotFoundError, naming the
    study that makes them, for records that are not there.
    """
    if name not in FIGURES:
        raise ValueError(f"figures: no figure {name!r}; there are {', '.join(FIGURES)}")
    studies, function = FIGURES[name]
    records = [load_records(study, data_folder) for study in studies]
    with blaming(", ".join(str(record_path(study, data_folder)) for study in studies) or name):
        figure = function(*map(_on, itertools.repeat(corpus), studies, records))
        others = [function(*map(_on, itertools.repeat(text), studies, records)) for text in _others(records, corpus)]
    if any(study in OF_ONE_TEXT for study in studies):
        said = [f"On {text}: {_title(other)}." for text, other in zip(_others(records, corpus), others, strict=True)]
        figure.set_label(" ".join([f"{figure.get_label()} The new text is {corpus}.", *said]))
    return figure


def _others(records: Iterable[dict[str, Any]], corpus: str) -> list[str]:
    """The other texts in the records of studies whose figures show one: what is concluded there is told, too."""
    rows = [row for many in records if many["study"] in OF_ONE_TEXT for row in many["rows"]]
    return [text for text in dict.fromkeys(row.get("corpus", corpus) for row in rows) if text != corpus]


def _title(figure: Figure) -> str:
    return " ".join(figure.get_suptitle().split())


def _on(corpus: str, study: str, records: dict[str, Any]) -> dict[str, Any]:
    """The records of one text, of a study whose figures show one. Records that name no text are of any."""
    if study not in OF_ONE_TEXT:
        return records
    rows = [row for row in records["rows"] if row.get("corpus", corpus) == corpus]
    if not rows:
        there = ", ".join(dict.fromkeys(row["corpus"] for row in records["rows"]))
        raise ValueError(f"figures: the records of {study} hold nothing of {corpus!r}; there are {there}")
    return {**records, "rows": rows}


def draw(
    names: Iterable[str] | None = None,
    data_folder: str | Path | None = None,
    output_folder: str | Path = "figures",
    corpus: str = CORPUS,
) -> list[Path]:
    """Draw figures (default: all) into a folder as NAME.png and NAME.svg, with NAME.txt, the caption: -> the paths.

    The same records give the same bytes. Nothing is written unless all of them can be drawn. Raises as `make` does.
    """
    names = list(FIGURES) if names is None else [names] if isinstance(names, str) else list(names)
    made = {name: make(name, data_folder, corpus) for name in names}
    paths: list[Path] = []
    for name, figure in made.items():
        stem = Path(output_folder) / name
        paths += save(figure, stem)
        words = textwrap.fill(caption(name, figure), 100) + "\n"
        paths.append(write_beside(f"{stem}.txt", lambda file, text=words: file.write(text.encode())))  # type: ignore[misc]
    return paths

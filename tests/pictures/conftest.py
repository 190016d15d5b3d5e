"""Records of the study, made by hand and tiny: three kinds of matrices, two texts, numbers that are easy to compare."""

import copy
import itertools

import numpy as np
import pytest

from minilora.analysis import rank
from minilora.pictures.figures import FIGURES
from minilora.studies import studies

KINDS = ("attn.q_proj", "attn.v_proj", "mlp.up_proj")
CORPORA = ("new", "code")
RATES = (1e-3, 3e-3, 1e-2, 3e-2)


def mean(value, spread=0.01, number="loss"):
    return {number: value, f"{number}_spread": spread, "seeds": 3}


METHODS = {  # loss, loss on the old text, trained parameters
    "lora": (1.5, 1.4, 1000), "full": (1.2, 2.0, 10_000), "last-blocks": (1.4, 1.9, 2500), "bitfit": (2.2, 1.25, 80),
    "prompt": (2.7, 1.3, 40), "prefix": (2.4, 1.3, 160), "prefix-mlp": (2.45, 1.3, 900), "houlsby": (1.9, 1.3, 170),
    "pfeiffer": (1.95, 1.3, 170), "lora-all": (1.7, 1.3, 180), "lora-qv": (2.1, 1.3, 160), "rslora": (2.05, 1.3, 160),
    "lora+": (2.0, 1.3, 160), "pissa": (2.08, 1.3, 160), "dora": (2.09, 1.3, 170), "qlora": (2.12, 1.3, 160),
}  # fmt: skip
LASTING = ("prompt", "prefix", "prefix-mlp", "houlsby", "pfeiffer")  # what cannot be merged


def methods():
    rows = []
    for corpus in CORPORA:
        for method, (loss, old, trained) in METHODS.items():
            curve = {"step": [0, 5, 10], "loss": [[3.0, 2.0, loss + s] for s in (-0.01, 0, 0.01)]}
            sizes = {"step_seconds": trained / 1e4, "memory_bytes": trained * 16.0, "stored_bytes": trained * 4.0}
            row = {"corpus": corpus, "method": method, "trainable": trained, "lr": 0.01, "curve": curve, "before": 3.0}
            row |= {"old_before": 1.2, **mean(loss), **mean(old, number="old_loss"), **sizes}
            row |= {"step_ratio": trained / 10_000, "mergeable": method not in LASTING}
            row |= {"token_ratio": 1.25 if method in LASTING else 1.0}
            rows.append(row | {"memory_bytes_spread": 0.0, "stored_bytes_spread": 0.0})
    return rows


def spectra():
    rng, rows = np.random.default_rng(0), []
    for method, r in (("lora", 4), ("full", 32)):
        for seed in (0, 1):
            for layer in (0, 1):
                for kind in KINDS:
                    decay = 0.5 ** np.arange(r)[:, None]
                    delta = rng.normal(size=(32, r)) @ (decay * rng.normal(size=(r, 32)))
                    s = rank.singular_values(delta)
                    s[r:] = 0
                    noise = rank.singular_values(rank.random_like(delta, seed))
                    row = {"method": method, "seed": seed, "name": f"blocks.{layer}.{kind}", "spectrum": s.tolist()}
                    row |= {"random": noise.tolist(), "energy_rank": rank.energy_rank(s)}
                    rows.append(row)
    return rows


def intruders():
    """LoRA has two intruders more where it learned as much; shrinking them saves less than shrinking all of Delta W."""
    rows, losses = [], {"full": (2.0, 1.7, 1.6), "lora": (2.1, 1.8, 1.7)}
    saved = {"intruders": (0.1, -0.4), "others": (0.1, 0.2), "change": (0.1, -0.8), "rest": (0.05, -0.3)}
    for corpus, (kind, many), seed in itertools.product(CORPORA, losses.items(), (0, 1)):
        for place, loss in enumerate(many):
            told = {"corpus": corpus, "kind": kind, "lr": RATES[place], "seed": seed}
            off = 0.01 * (2 * seed - 1)
            model = {"part": "none", "factor": 1.0, "loss": loss + off, "old_loss": 3.0 + off, "change": 0.3}
            count = (place if kind == "full" else place + 2.0) + off
            rows.append({**told, **model, "intruders": count})
            for (part, (new, old)), step in itertools.product(saved.items(), (1, 2, 4) if place else ()):
                weaker = {"part": part, "factor": 1 - step / 4, "loss": loss + off + new * step}
                rows.append({**told, **weaker, "old_loss": 3.0 + off + old * min(step, 2)})
    return rows


def rank_use():
    """Half of r, whatever it is, by effective rank; its root by stable rank."""
    rows = []
    for kind, seed in itertools.product(("lora", "lora, random", "full", "full, random"), (0, 1)):
        for r in (1, 4, 16) if kind.startswith("lora") else (32,):
            by = 0.9 if "random" in kind else 0.5
            row = {"kind": kind, "rank": r, "lr": 0.01, "seed": seed, "norm": 1.0, "loss": 2.0}
            rows.append({**row, "effective_rank": max(by * r, 1.0) + 0.01 * seed, "stable_rank": r**0.5 + 0.01 * seed})
    return rows


def sixteen_bits():
    """Half of the entries are gone at 1 % of W in bfloat16, at an eighth of that in float16."""
    rows = []
    for share, seed in itertools.product((1.0, 0.1, 0.01), (0, 1)):
        for (kind, half), way in itertools.product(
            (("bfloat16", 1e-2), ("float16", 1.25e-3)), ("nearest", "at random")
        ):
            ratio = 0.1 * share * (1 + 0.01 * seed)
            gone = min(max(0.5 - 0.3 * np.log10(ratio / half), 0.0), 1.0)
            row = {"lr": 0.01, "seed": seed, "share": share, "format": kind, "way": way, "ratio": ratio, "gone": gone}
            row |= {"along_formula": 1 - gone, "gone_formula": gone} if way == "nearest" else {}
            rows.append({**row, "gain": share * (1 - gone if way == "nearest" else 1.0), "gain_exact": share})
    return rows


def subspaces():
    rng, rows = np.random.default_rng(0), []
    for kind in KINDS * 2:
        row = {"name": f"blocks.0.{kind}", "delta": 2.0, "weight": 8.0, "random": 0.5, "delta_norm": 6.0}
        row |= {"weight_norm": 9.0, "amplification": 3.0}
        for side in ("lora_A", "lora_B"):
            a, b, c = (rng.normal(size=(8, 32)) for _ in range(3))
            a[0] += 20 * np.ones(32)
            b[0] += 20 * np.ones(32)
            row[f"{side}_ranks"] = row[f"{side}_seeds"] = rank.similarity_grid(a, b).tolist()
            row[f"{side}_random"] = rank.similarity_grid(a, c).tolist()
        rows.append(row)
    return rows


def truncation():
    cut = zip((0, 1, 2, 4, 8, 32), (3.0, 2.0, 1.6, 1.21, 1.2, 1.2), strict=True)
    lora = zip((1, 2, 4, 8), (2.2, 1.6, 1.4, 1.21), strict=True)
    named = (("truncated", cut), ("lora", lora))
    return [{"method": name, "rank": r, **mean(loss)} for name, many in named for r, loss in many]


def matrices():
    sets = {"q": 2.0, "v": 1.8, "all": 1.4}
    return [{"corpus": c, "targets": t, "rank": 4, **mean(loss)} for c in CORPORA for t, loss in sets.items()]


def rank_choice():
    losses = zip((1, 2, 4, 8), (2.0, 1.6, 1.41, 1.4), strict=True)
    return [{"corpus": c, "rank": r, **mean(loss)} for r, loss in losses for c in CORPORA]


def rates():
    """Parabolas: LoRA's best rate is 4 times full fine-tuning's at r = 8, and as r^0 and r^-0.5."""
    powers, rows = {"alpha": 0.0, "alpha/r": -0.5}, []
    best = {("full", 8): [2.5e-3] * 3}
    best |= {
        (k, r): [1e-2 * off * (r / 8) ** p for off in (0.95, 1, 1.05)] for k, p in powers.items() for r in (1, 8, 64)
    }
    for (kind, r), many in best.items():
        for lr in (1e-2 * 1.5**place for place in range(-7, 7)):
            ends = [1 + 0.2 * np.log(lr / each) ** 2 for each in many]
            row = {"kind": kind, "rank": r, "lr": lr, "step": [0, 20], "curves": [[3.0, end] for end in ends]}
            rows.append({**row, **mean(float(np.mean(ends)), (max(ends) - min(ends)) / 2)})
    return rows


def starts():
    rows = []
    for start, a, b, first, loss in (("lora", 0, 2, 3, 1.5), ("both zero", 0, 0, 3, 3), ("both random", 3, 1, 4, 2)):
        row = {"start": start, "gradient_A": float(a), "gradient_B": float(b), "before": 3.0}
        rows.append({**row, **mean(float(first), 0.0, "first"), **mean(float(loss))})
    return rows


def asymmetry():
    losses = {"A and B": 1.8, "A and B, B random": 1.9, "B": 1.9, "A": 2.1, "B, r=16": 1.8, "A, r=16": 2.0}
    more = {"lr": 0.01, "trainable": 1000}
    return [{"corpus": c, "kind": kind, **more, **mean(loss)} for c in CORPORA for kind, loss in losses.items()]


def batches():
    """LoRA of rank 8 loses more with large batches, that of rank 64 does not; nor with few steps of small ones."""
    gaps = {"LoRA r=8": (0.1, 0.2, 0.3), "LoRA r=64": (0.1, 0.1, 0.1), "full": (0.0, 0.0, 0.0)}
    few = {"LoRA r=8": 0.1, "LoRA r=64": 0.1, "full": 0.0}
    shape = lambda method, size, steps: {"method": method, "batch_size": size, "steps": steps}
    rows = [{**shape(m, 8, 2), **mean(2.5 + gap), **mean(gap, number="gap")} for m, gap in few.items()]
    for place, size in enumerate((1, 8, 64)):
        for method, many in gaps.items():
            gap = many[place]
            row = shape(method, size, 128 // size)
            rows.append({**row, **mean(1.5 + place / 3 + gap), **mean(gap, number="gap")})
    return rows


def data():
    """To its end, training on little text is worse than none; LoRA of rank 1 wins with little text, loses with much."""
    losses = {"LoRA r=1": (2.9, 2.4, 1.9), "LoRA r=8": (3.0, 2.5, 1.7), "full": (3.0, 2.5, 1.6)}
    rows = []
    for method, many in losses.items():
        for n, loss, last, full in zip((2_000, 8_000, 32_000), many, (4.0, 2.6, 0.0), losses["full"], strict=True):
            row = {"method": method, "characters": n, "base": 3.0, **mean(loss), "seen": loss - 0.02}
            row |= mean(max(last, loss), number="last") | mean(3.0 - loss, number="gain")
            rows.append(row | mean(loss - full, number="gap"))
    return rows


def sizes():
    """LoRA keeps improving, adapters level off, prefixes turn worse, prompts do not clearly change."""
    losses = {
        "LoRA": (2.0, 1.6, 1.4),
        "adapters": (2.0, 1.5, 1.5),
        "prefix": (2.4, 2.2, 2.5),
        "prompt": (2.7, 2.7, 2.7),
    }
    rows = []
    for method, many in losses.items():
        for size, loss in zip((1, 8, 64), many, strict=True):
            virtual = size if method in ("prefix", "prompt") else 0
            row = {"method": method, "size": size, "trainable": 1000 * size, "context": 128 - virtual}
            rows.append({**row, "base_loss": 3 + virtual / 256, **mean(loss)})
    return rows


def few_bits():
    losses = {  # bits, loss as held, after QLoRA, merged and held so again
        "float32": (32.0, 1.09, 1.08, 1.08), "int8": (8.5, 1.09, 1.08, 1.08),
        "nf4, blocks of 16": (6.0, 1.1, 1.08, 1.1), "nf4": (4.5, 1.11, 1.08, 1.12),
        "nf4, double": (4.127, 1.11, 1.085, 1.12), "int4, double": (4.127, 1.14, 1.09, 1.15),
        "int3": (3.127, 1.6, 1.13, 1.5), "int2": (2.127, 3.5, 1.6, 3.2),
    }  # fmt: skip
    rows = []
    for base, (width, before, loss, again) in losses.items():
        row = {"base": base, "bits": width, "loss_before": before, **mean(loss, 0.001), "bytes": 100_000 * width}
        rows.append({**row, **mean(loss, 0.001, "merged_loss"), **mean(again, 0.001, "again_loss")})
    return rows


def forgetting():
    """Full fine-tuning learns most and forgets most, and forgets least where others have learned as much as it has."""
    ends = {"full": 1.2, "full + pull": 1.2, "LoRA r=8": 1.5, "LoRA r=8 on q,v": 1.8, "last block": 1.6}
    bends = {"full": 1.0, "full + pull": 0.5, "LoRA r=8": 1.3, "LoRA r=8 on q,v": 1.6, "last block": 1.0}
    rows = []
    for corpus, (method, end), seed in itertools.product(CORPORA, ends.items(), (0, 1, 2)):
        for lr, share in ((1e-3, 0.5), (3e-3, 1.0)):  # the gentler rate gets half as far
            new = np.linspace(3.0, 3.0 - share * (3.0 - end), 25)
            old = 1.1 + bends[method] * (1 + 0.01 * seed) * (3.0 - new) ** 2
            curve = {"step": list(range(25)), "loss": new.tolist(), "old_loss": old.tolist()}
            row = {"corpus": corpus, "method": method, "lr": lr, "pull": 0.0, "seed": seed, "trainable": 1000}
            row |= {
                "before": 3.0,
                "old_before": 1.1,
                "loss": float(new[-1]),
                "old_loss": float(old[-1]),
                "curve": curve,
            }
            rows.append(row)
    return rows


TEXTS = ("my-docs", "my-code", "my-names")


def tasks():
    """In sequence the loss on a text falls to 1.5 at its stage, and is a nat higher with each stage after that; at
    gentle rates half a nat."""
    rows = []
    each = {"sequential": 1.0, "gentle": 0.5, "adapters": 0.0}
    for kind in each:
        for i, stage in enumerate(("base", *TEXTS)):
            for j, text in enumerate(TEXTS, start=1):
                loss = 3.0 if i < j else 1.5 + each[kind] * max(i - j, 0)
                row = {"kind": kind, "stage": stage, "text": text, "switch_seconds": 3e-4, "lr": 1e-3}
                rows.append({**row, **mean(loss)})
    return rows


def latency():
    ratios = {
        "base": 1.0,
        "lora": 1.4,
        "lora merged": 1.01,
        "houlsby": 1.3,
        "pfeiffer": 1.2,
        "prefix": 1.04,
        "prompt": 0.9,
    }
    shapes = [("base", n, length) for n, length in ((1, 16), (1, 96), (8, 96), (32, 96))]
    shapes += [("gpt2", n, length) for n, length in ((1, 16), (1, 96), (4, 96))]
    return [
        {"model": model, "task": task, "batch": n, "length": length, "method": method}
        | {"seconds": 0.001, "ratio": ratio, "ratio_spread": 0.0 if method == "base" else 0.05}
        for model, n, length in shapes
        for task in ("forward", "token")
        for method, ratio in ratios.items()
    ]


def memory():
    parts = {"weights": 2**20, "gradients": 2**20, "optimizer_state": 2**21, "activations": 2**22}
    rows = []
    for model, shares in (("base", (1.0, 0.7, 0.9)), ("gpt2", (1.0, 0.25, 0.3))):
        for method, share in zip(("full", "lora-qv", "lora"), shares, strict=True):
            scaled = {name: share * size for name, size in parts.items()}
            rows.append(
                {"model": model, "method": method, "memory_bytes": 2**23 * share, "share_of_full": share, **scaled}
            )
    return rows


def rewards():
    """From rewards 200 parameters are enough, from examples 1,000; what few learn from rewards they forget of names."""
    shares = {"rewards": (0.6, 0.9, 0.95, 0.95), "examples": (0.1, 0.2, 0.8, 0.85)}
    rows = []
    for way, many in shares.items():
        for (size, trained), share in zip(
            (("one matrix", 20), ("r=1", 200), ("r=8", 1000), ("full", 10_000)), many, strict=True
        ):
            ends = [share - 0.01, share, share + 0.01]
            row = {"way": way, "size": size, "trainable": trained, "steps": 60, "batch_size": 16, "lr": 0.01}
            row |= {"before": 0.04, "base_loss": 1.1, "names": ["A LETTER", "WE WITH WE"], "different": 0.9}
            row["curve"] = {"step": [0, 30, 60], "reward": [[0.04, share / 2, end] for end in ends]}
            rows.append(row | mean(share, 0.01, "reward") | mean(2.0 if way == "rewards" else 1.2))
    return rows


def real():
    """Right answers from 3 of 100 to about 80; the higher the rate, the more English is forgotten."""
    common = {"asked": 100, "rank": 8, "batch_size": 8, "dtype": "file", "processor_seconds": 300.0}
    rows = [{"lr": 0.001, "seed": 0, "steps": 0, "right": 3, "loss": 1.7, "old_loss": 3.0, **common}]
    runs = [(0.001, 0, 80, 0.1, 3.1), (0.001, 1, 78, 0.1, 3.1), (0.001, 2, 82, 0.1, 3.1)]
    for lr, seed, right, loss, old in [*runs, (3e-4, 0, 60, 0.2, 3.02), (3e-3, 0, 81, 0.09, 3.6)]:
        curve = {"step": [50, 100], "loss": [2 * loss, loss], "old_loss": [old - 0.01, old]}
        row = {"lr": lr, "seed": seed, "steps": 100, "right": right, "loss": loss, "old_loss": old, "curve": curve}
        rows.append({**row, **common})
    rows[0]["curve"] = {"step": [0], "loss": [1.7], "old_loss": [3.0]}
    return rows


SHARES = ("character", "font", "both", "error")


def shares(**of):
    return {key: value for name, x in of.items() for key, value in mean(x, 0.02, name).items()}


def style():
    """LoRA comes to more with more glyphs; full fine-tuning forgets letters; rank 16 is no better than 4."""

    def row(name, method, rank, examples, *four):
        how = {"name": name, "method": method, "rank": rank, "examples": examples, "lr": 0.01}
        return how | shares(**dict(zip(SHARES, four, strict=True)))

    rows = [row("base", "full", 4, 26, 0.95, 0.0, 0.0, 0.3), {"name": "true", **shares(character=1.0, font=0.9)}]
    for examples, font in ((10, 0.3), (26, 0.5), (52, 0.7)):
        rows.append(row("lora", "lora", 4, examples, 0.9, font, font - 0.05, 0.2))
        rows.append(row("full", "full", 4, examples, 0.8, font - 0.1, font - 0.15, 0.2))
    rows += [row("lora", "lora", rank, 26, 0.9, font, font - 0.05, 0.2) for rank, font in ((1, 0.3), (16, 0.5))]
    long = {"steps": 600, "batch_size": 64}
    rows.append(row("long", "lora", 16, 26, 0.9, 0.6, 0.55, 0.2) | long)
    rows.append(row("long", "full", 4, 26, 0.8, 0.5, 0.4, 0.2) | long)
    rows.append(row("not led away", "lora", 16, 26, 0.95, 0.3, 0.3, 0.2) | long)
    picture = ["00ff" * 32] * 2
    for font in ("One", "Two"):
        rows.append({"name": "pictures", "font": font, "before": picture, "after": picture, "true": picture})
    return rows


def segments():
    """LoRA and full fine-tuning come to an error of 0.1, the head to 0.3; full forgets most of shapes."""
    ends, forgotten, rows = {"LoRA": 0.1, "head": 0.3, "last blocks": 0.2, "full": 0.1}, {"full": 0.5, "LoRA": 0.3}, []
    blank = {"image": bytes(2304).hex(), "point": [20, 30], "side": 48}
    blank |= {name: np.packbits(np.eye(48, dtype=bool)).tobytes().hex() for name in ("before", "after", "truth")}
    for method, n, seed in itertools.product(ends, (8, 64, 128), (0, 1, 2)):
        loss = ends[method] + 0.4 / n + 0.001 * seed
        new = np.linspace(0.9, loss, 6)
        old = 0.15 + forgotten.get(method, 0.1) * (0.9 - new) ** 2
        curve = {"step": list(range(6)), "loss": new.tolist(), "old_loss": old.tolist()}
        row = {"kind": "methods", "corpus": "cracks", "method": method, "examples": n, "lr": 0.01, "seed": seed}
        row |= {"loss": loss, "old_loss": float(old[-1]), "before": 0.9, "old_before": 0.15, "curve": curve}
        rows.append(row)
    like = [row for row in rows if row["method"] == "LoRA" and row["examples"] == 64]
    boxes = {"box_before": 0.8, "box": 0.2, "shown": blank}
    plates = [{**row, "kind": "tasks", "corpus": "plates", "before": 0.5, **boxes} for row in like]
    return rows + [{**row, "kind": "tasks", **boxes} for row in like] + plates


def images():
    """LoRA errs least; at equal error it forgets less than full fine-tuning."""
    rows = []
    for examples in (1, 10):
        for method, error, old in (
            ("head", 0.5, None),
            ("last block", 0.3, 0.3),
            ("lora", 0.2, 0.2),
            ("full", 0.3, 0.4),
        ):
            row = {"method": method, "examples": examples, "lr": 0.01, "trainable": 1000}
            news = [] if old is None else [0.9, 0.6, 0.3]
            row["matched"] = [{"error": new, "old": [old - new / 10 + s for s in (0, 0.01, 0.02)]} for new in news]
            rows.append(row | mean(error / examples**0.5, 0.01, "error") | mean(0.3, 0.01, "old_error"))
    return rows


def style_blocks():
    """Block 1 of three moves the font most, and block 2 harms the letters; only 1 and 2 come to more than their sum."""
    font = {(): 0.02, (0,): 0.1, (1,): 0.4, (2,): 0.07, (0, 1): 0.4, (0, 2): 0.2, (1, 2): 0.5, (0, 1, 2): 0.6}
    each = {blocks: {"font": [share * seed for seed in (0.9, 1.0, 1.1)]} for blocks, share in font.items()}
    each[0, 2] = {"font": [0.05, 0.25, 0.3]}  # below its better block in one seed, above the sum in others
    letters = lambda blocks: 0.6 if 2 in blocks else 0.9
    rows = [
        {"blocks": [*blocks], "each": each[blocks], **shares(character=letters(blocks), font=found)}
        for blocks, found in font.items()
    ]
    rows[0]["font_spread"] = 0.0  # the base's, of whose spread nothing is told
    return rows


def style_mixed():
    """Half the strength is half the font; of three blocks two decide; the sum of two adapters is sometimes both."""
    rows = [{"kind": "strength", "strength": s, **shares(character=0.9, font=min(s, 1) / 2)} for s in (0, 0.5, 1, 1.5)]
    for n in range(4):
        rows.append({"kind": "blocks", "first": n, **shares(character=0.8, font=n / 4, other=0.75 - n / 4)})
    for name, font in (("bold", 0.1), ("italic", 0.0), ("mean", 0.2), ("sum", 0.4), ("taught", 0.6)):
        rows.append({"kind": "two fonts", "name": name, **shares(character=0.9, font=font, error=0.3 - font / 4)})
    return rows


ROWS = {
    "methods": methods, "spectra": spectra, "subspaces": subspaces, "truncation": truncation, "matrices": matrices,
    "ranks": rank_choice, "rates": rates, "starts": starts, "asymmetry": asymmetry, "batches": batches, "data": data,
    "sizes": sizes, "bits": few_bits, "tasks": tasks, "forgetting": forgetting, "latency": latency,
    "memory": memory, "real": real, "rewards": rewards, "intruders": intruders, "rank-use": rank_use,
    "sixteen-bits": sixteen_bits, "style": style, "style-blocks": style_blocks, "style-mixed": style_mixed,
    "segments": segments, "images": images,
}  # fmt: skip


@pytest.fixture
def records():
    """records(study, change): the records of a study, with change(row) called on each row."""

    def make(study, change=None):
        rows = copy.deepcopy(ROWS[study]())
        for row in rows if change else ():
            change(row)
        return {"format": studies.FORMAT, "study": study, "question": "?", "scale": {"name": "test"}, "rows": rows}

    return make


@pytest.fixture
def folder(tmp_path, records):
    """A folder with the records of every study."""
    for study in ROWS:
        studies.write_json(tmp_path / "data" / f"{study}.json", records(study))
    return tmp_path / "data"


@pytest.fixture
def figure_of(records):
    """figure_of(name, change): a figure, drawn from changed records."""

    def make(name, change=None):
        needed, function = FIGURES[name]
        return function(*(records(study, change) for study in needed))

    return make


@pytest.fixture
def title(figure_of):
    """title(name, change): what that figure's title says, on one line."""
    return lambda name, change=None: figure_of(name, change).get_suptitle().replace("\n", " ")


@pytest.fixture
def wide():
    """A change of rows: so large a spread that nothing differs clearly."""
    return lambda row: row.update({key: 5.0 for key in row if key.endswith("_spread")})

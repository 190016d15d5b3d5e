"""The two trainings of `minilora demo` in PyTorch: the same batches, schedule, clipping and evaluations."""

from typing import Any

import numpy as np

from ..adapters.lora import LoRAConfig, add_lora
from ..nn.gpt import GPT
from ..nn.storage import load_model
from ..training.corpus import Corpus, load_corpus
from ..training.loop import EVALUATION_BATCH
from ..training.optim import cosine_schedule
from ..training.run import Settings
from .pytorch import TorchGPT

STEPS, RANK, RATES = 200, 8, {"LoRA": 1e-2, "all weights": 6e-3}  # those of demo.py, which a test compares


def train_all(steps: int = STEPS) -> dict[str, float]:
    """Train LoRA, then all weights: -> {run: validation loss at the end}"""
    corpus, losses = load_corpus("unicode-names"), {}
    for name, lr in RATES.items():
        model = load_model("base")
        if name == "LoRA":
            add_lora(model, LoRAConfig(RANK, target_modules=("*",)))
        settings = Settings(steps, lr=lr, evaluate_every=max(1, steps // 16), warmup=min(20, steps // 2))
        losses[name] = train(model, corpus, settings)
    return losses


def train(model: GPT, corpus: Corpus, s: Settings) -> float:
    """What `training.loop.train` does, in PyTorch, from a copy of our model: -> the last validation loss"""
    peer, rng, length = TorchGPT(model), np.random.default_rng(s.seed), model.config.block_size
    torch, parameters = peer.torch, peer.trained()
    optimizer = torch.optim.AdamW(parameters, s.lr, s.betas, weight_decay=s.weight_decay)
    loss = evaluate(peer, corpus, s)
    for step in range(s.steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine_schedule(step, s.steps, s.lr, s.warmup, s.floor * s.lr)
        tokens, targets = corpus.batch(s.batch_size, length, rng)
        rng.integers(2**63, size=2)  # the seed of dropout that our loop draws
        optimizer.zero_grad()
        peer.loss(peer.tensor(tokens), peer.tensor(targets)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, s.max_norm)
        optimizer.step()
        if (step + 1) % s.evaluate_every == 0 or step + 1 == s.steps:
            loss = evaluate(peer, corpus, s)
    return loss


def evaluate(peer: Any, corpus: Corpus, s: Settings) -> float:
    """The mean loss over the validation windows."""
    windows = corpus.validation_windows(peer.config.block_size, s.evaluation_windows)
    tokens, targets = (peer.tensor(part) for part in windows)
    with peer.torch.inference_mode():
        starts = range(0, len(tokens), EVALUATION_BATCH)
        parts = [(tokens[i : i + EVALUATION_BATCH], targets[i : i + EVALUATION_BATCH]) for i in starts]
        return sum(peer.loss(x, y).item() * len(x) for x, y in parts) / len(tokens)

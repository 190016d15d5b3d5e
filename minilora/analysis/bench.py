"""How fast is a training step? Ours and PyTorch's on the same shapes, data and threads, taking turns in one run.

A laptop's clock and neighbours change from minute to minute, so only ratios taken in turns mean anything: a record
holds medians, and the median and the quartiles of the ratio of neighbouring steps.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ..adapters.lora import LoRAConfig, add_lora, lora_layers
from ..nn.gpt import GPT, GPTConfig
from ..training.loop import train_step
from ..training.optim import AdamW
from ..training.parallel import cores
from .counting import operations

SIZES = {  # vocabulary, context, width, heads, layers, batch
    "tiny": (65, 64, 64, 4, 2, 16),
    "small": (256, 128, 128, 4, 4, 16),
    "medium": (512, 128, 256, 8, 4, 16),
    "gpt2": (50257, 128, 768, 12, 12, 1),
}
METHODS = ("lora", "full")
RANK, TARGETS = 8, ("q_proj", "v_proj")  # the paper's choice of matrices
LEARNING_RATE = 1e-3
WARM_UP = 3  # steps that are not timed


def bench(size: str, method: str, repeats: int = 15) -> dict[str, Any]:
    """Time training steps (forward, backward, AdamW) of one size, by LoRA or in full, beside PyTorch's eager mode.

    -> {"size", "method", "threads", "step_seconds", "limit_ratio", "peer", "peer_seconds", "ratio", "ratio_quartiles",
    "loss_difference"}. limit_ratio: the step over its floating-point operations at this machine's rate on a large
    matrix product, measured in the same run. loss_difference: the largest relative difference of the two losses over
    all steps, which shows that both sides compute the same thing. Without PyTorch the last five are None.
    Raises ValueError for an unknown size or method.
    """
    if size not in SIZES or method not in METHODS:
        raise ValueError(f"bench: got {size!r} and {method!r}; there are {', '.join(SIZES)} and {', '.join(METHODS)}")
    v, t, c, h, n, b = SIZES[size]
    model = GPT(GPTConfig(v, t, n, h, c))
    if method == "lora":
        add_lora(model, LoRAConfig(RANK, target_modules=TARGETS))
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(0, v, (2, b, t))
    peer = torch_step(model, tokens, targets)  # first: it copies the weights
    optimizer = AdamW(model.named_parameters(), LEARNING_RATE)
    ours = lambda: train_step(model, optimizer, tokens, targets)
    pairs, losses = [], []
    for _ in range(WARM_UP + repeats):
        (seconds, loss), (peer_seconds, peer_loss) = _timed(ours), _timed(peer)
        pairs.append((seconds, peer_seconds))
        losses.append((loss, peer_loss))
    mine, theirs = np.array(pairs[WARM_UP:]).T
    needed = operations(model.config, method, batch=b, length=t, rank=RANK, target_modules=TARGETS)["training"]
    record: dict[str, Any] = {
        "size": size,
        "method": method,
        "threads": cores(),
        "step_seconds": float(np.median(mine)),
    }
    record["limit_ratio"] = float(np.median(mine)) * product_rate() / needed
    record |= dict.fromkeys(("peer", "peer_seconds", "ratio", "ratio_quartiles", "loss_difference"))
    if peer is not None:
        a, z = np.array(losses).T
        record |= {
            "peer": "PyTorch eager",
            "peer_seconds": float(np.median(theirs)),
            "ratio": float(np.median(mine / theirs)),
            "ratio_quartiles": [float(q) for q in np.quantile(mine / theirs, (0.25, 0.75))],
            "loss_difference": float(np.max(np.abs(a - z) / np.abs(z))),
        }
    return record


def _timed(step: Callable[[], float] | None) -> tuple[float, float]:
    start = time.perf_counter()
    loss = step() if step else 0.0
    return time.perf_counter() - start, loss


def product_rate(n: int = 2048, repeats: int = 5) -> float:
    """Floating-point operations a second of a large float32 matrix product here: 2 n^3 over the shortest time."""
    a = np.random.default_rng(0).random((n, n), dtype=np.float32)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        _ = a @ a
        times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times)


def torch_step(model: GPT, tokens: np.ndarray, targets: np.ndarray) -> Callable[[], float] | None:
    """The same training step in PyTorch's eager mode, from copies of the model's parameters; None without PyTorch."""
    try:
        import torch
        from torch.nn import functional as F
    except ImportError:
        return None
    torch.set_num_threads(cores())
    p = {name: torch.tensor(q.numpy(), requires_grad=q.requires_grad) for name, q in model.named_parameters()}
    scale = {name: layer.config.scale for name, layer in lora_layers(model).items()}
    config = model.config
    optimizer = torch.optim.AdamW([q for q in p.values() if q.requires_grad], LEARNING_RATE)
    x, y = torch.tensor(tokens), torch.tensor(targets)

    def linear(h: Any, name: str) -> Any:
        out = F.linear(h, p[f"{name}.weight"], p[f"{name}.bias"])
        if name in scale:
            out = out + scale[name] * F.linear(F.linear(h, p[f"{name}.lora_A"]), p[f"{name}.lora_B"])
        return out

    def norm(h: Any, name: str) -> Any:
        return F.layer_norm(h, h.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"])

    def loss() -> Any:
        b, t = x.shape
        h = p["wte.weight"][x] + p["wpe.weight"][:t]  # (B, T, C)
        for i in range(config.n_layer):
            block, z = f"blocks.{i}", norm(h, f"blocks.{i}.ln_1")
            q, k, v = (
                linear(z, f"{block}.attn.{kind}_proj").view(b, t, config.n_head, -1).transpose(1, 2) for kind in "qkv"
            )  # (B, H, T, D)
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, -1)  # (B, T, C)
            h = h + linear(a, f"{block}.attn.o_proj")
            up = F.gelu(linear(norm(h, f"{block}.ln_2"), f"{block}.mlp.up_proj"), approximate="tanh")  # (B, T, 4C)
            h = h + linear(up, f"{block}.mlp.down_proj")
        logits = F.linear(norm(h, "ln_f"), p["wte.weight"])  # (B, T, V)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), y.view(-1))

    def step() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value.item()

    return step


def table(records: list[dict[str, Any]]) -> str:
    """The records as text of 80 columns."""
    titles = ("size", "method", "ours", "PyTorch", "ratio", "quartiles", "/ limit")
    lines = ["{:<8}{:<8}{:>11}{:>11}{:>9}{:>15}{:>10}".format(*titles)]
    for r in records:
        line = f"{r['size']:<8}{r['method']:<8}{1e3 * r['step_seconds']:>8.1f} ms"
        if r["peer"]:
            low, high = r["ratio_quartiles"]
            line += f"{1e3 * r['peer_seconds']:>8.1f} ms{r['ratio']:>9.2f}{f'{low:.2f} - {high:.2f}':>15}"
        else:
            line += f"{'-':>11}{'-':>9}{'-':>15}"
        lines.append(f"{line}{r['limit_ratio']:>10.2f}")
    lines += ["", "ratio: our step over PyTorch's, medians of steps taking turns. / limit: our step", "over its"]
    lines[-1] += " floating-point operations at the rate of a large matrix product."
    if not all(r["peer"] for r in records):
        lines.append("PyTorch is not installed: pip install 'minilora[peers]' puts it beside.")
    return "\n".join(lines)

"""Our transformer in PyTorch, from copies of our parameters: the peer of training, generation and memory.

PyTorch's own fused functions do the work (linear, layer_norm, gelu, scaled_dot_product_attention, cross_entropy), as in
any program that is written for speed. On a GPU, TF32 is off: products are in float32, as ours are.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from ..adapters.lora import lora_layers
from ..nn.gpt import GPT
from ..studies.turns import Contender, LeftOut
from ..training.parallel import cores

LEARNING_RATE = 1e-3  # of every training step in the benchmark


def import_torch(device: str = "cpu") -> Any:
    """PyTorch on as many threads as we use. Raises LeftOut where it is not installed or finds no such device."""
    try:
        import torch
    except ImportError:
        raise LeftOut("PyTorch is not installed: pip install 'minilora[peers]'") from None
    if device != "cpu" and not torch.cuda.is_available():
        raise LeftOut("this PyTorch finds no GPU")
    torch.set_num_threads(cores())
    torch.backends.cuda.matmul.allow_tf32 = False
    return torch


class TorchGPT:
    """The same model: a parameter for each of ours, trained where ours is. device: "cpu" or "cuda"."""

    def __init__(self, model: GPT, device: str = "cpu"):
        self.torch, self.config, self.device = import_torch(device), model.config, device
        self.functional = self.torch.nn.functional
        self.p = {
            name: self.torch.tensor(p.numpy(), device=device).requires_grad_(p.requires_grad)
            for name, p in model.named_parameters()
        }
        self.scale = {name: layer.config.scale for name, layer in lora_layers(model).items()}

    def tensor(self, array: np.ndarray) -> Any:
        """A copy of an array on the model's device."""
        return self.torch.tensor(array, device=self.device)

    def trained(self) -> list:
        """The parameters that an optimiser updates."""
        return [p for p in self.p.values() if p.requires_grad]

    def linear(self, h: Any, name: str) -> Any:
        """(..., d_in) -> (..., d_out), with LoRA where the layer has it"""
        F, p = self.functional, self.p
        y = F.linear(h, p[f"{name}.weight"], p[f"{name}.bias"])
        if name in self.scale:
            y = y + self.scale[name] * F.linear(F.linear(h, p[f"{name}.lora_A"]), p[f"{name}.lora_B"])
        return y

    def norm(self, h: Any, name: str) -> Any:
        """Layer norm.   (B, T, C) -> (B, T, C)"""
        return self.functional.layer_norm(h, h.shape[-1:], self.p[f"{name}.weight"], self.p[f"{name}.bias"])

    def heads(self, z: Any, block: str, count: int) -> Any:
        """Queries, keys and values.   (B, T, C) -> three times (B, H, T, D)"""
        return (self.linear(z, f"{block}.attn.{kind}_proj").unflatten(2, (count, -1)).transpose(1, 2) for kind in "qkv")

    def both_ways(self, z: Any, block: str, count: int) -> Any:
        """Attention in which each token sees all others.   (B, T, C) -> (B, T, C)"""
        a = self.functional.scaled_dot_product_attention(*self.heads(z, block, count)).transpose(1, 2).flatten(2)
        return self.linear(a, f"{block}.attn.o_proj")

    def logits(self, x: Any, cache: list | None = None) -> Any:
        """(B, T) tokens -> (B, T, V). cache: a list with the (keys, values) of each block, longer after the call"""
        F, (b, t) = self.functional, x.shape
        past = cache[0][0].shape[2] if cache else 0
        h = F.embedding(x, self.p["wte.weight"]) + self.p["wpe.weight"][past : past + t]  # (B, T, C)
        for i in range(self.config.n_layer):
            block, z = f"blocks.{i}", self.norm(h, f"blocks.{i}.ln_1")
            q, k, v = self.heads(z, block, self.config.n_head)  # (B, H, T, D)
            if cache is not None:
                if past:
                    k, v = self.torch.cat([cache[i][0], k], 2), self.torch.cat([cache[i][1], v], 2)  # (B, H, S, D)
                cache[i : i + 1] = [(k, v)]
            a = F.scaled_dot_product_attention(q, k, v, is_causal=t > 1).transpose(1, 2).reshape(b, t, -1)  # (B, T, C)
            h = h + self.linear(a, f"{block}.attn.o_proj")
            up = F.gelu(self.linear(self.norm(h, f"{block}.ln_2"), f"{block}.mlp.up_proj"), approximate="tanh")
            h = h + self.linear(up, f"{block}.mlp.down_proj")
        return F.linear(self.norm(h, "ln_f"), self.p["wte.weight"])  # (B, T, V)

    def loss(self, x: Any, y: Any) -> Any:
        """The mean cross-entropy in nats"""
        logits = self.logits(x)
        return self.functional.cross_entropy(logits.view(-1, logits.shape[-1]), y.view(-1))

    def generate(self, tokens: np.ndarray, count: int) -> np.ndarray:
        """The likeliest tokens after a text, one at a time, with cached keys and values.   (1, T) -> (1, T + count)"""
        text = [self.tensor(tokens)]
        cache: list = []
        with self.torch.inference_mode():
            for _ in range(count):
                text.append(self.logits(text[-1], cache)[:, -1:].argmax(-1))
        return self.torch.cat(text, 1).numpy()

    def train_step(self, optimizer: Any, x: Any, y: Any, loss: Callable | None = None) -> float:
        """Forward, backward, update: -> the loss before the update"""
        optimizer.zero_grad()
        value = (loss or self.loss)(x, y)
        value.backward()
        optimizer.step()
        return value.item()

    def finish(self) -> None:
        """Wait for the device."""
        if self.device != "cpu":
            self.torch.cuda.synchronize()


def eager(model: GPT, tokens: np.ndarray, targets: np.ndarray, device: str = "cpu") -> Contender:
    """A training step as PyTorch runs it by default: operation by operation, AdamW as `torch.optim` gives it."""
    gpt = TorchGPT(model, device)
    x, y = gpt.tensor(tokens), gpt.tensor(targets)
    optimizer = gpt.torch.optim.AdamW(gpt.trained(), LEARNING_RATE)
    return Contender("PyTorch eager", lambda: gpt.train_step(optimizer, x, y), gpt.finish)


def compiled(model: GPT, tokens: np.ndarray, targets: np.ndarray, device: str = "cpu") -> Contender:
    """The same step with the forward and backward pass compiled by torch.compile, and AdamW fused into one loop.

    Raises LeftOut where it cannot be compiled; on a processor that takes a C++ compiler.
    """
    gpt = TorchGPT(model, device)
    x, y = gpt.tensor(tokens), gpt.tensor(targets)
    gpt.torch.compiler.reset()  # or the next size would be compiled for shapes that change
    loss = gpt.torch.compile(gpt.loss, dynamic=False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler about its own parts
            loss(x, y).backward()
    except Exception as error:  # whatever the compilers between here and the machine have to say
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = next((line for line in lines if "ompiler" in line), lines[0] if lines else type(error).__name__)
        raise LeftOut(f"torch.compile failed: {reason}") from None
    optimizer = gpt.torch.optim.AdamW(gpt.trained(), LEARNING_RATE, fused=True)
    return Contender("PyTorch compiled", lambda: gpt.train_step(optimizer, x, y, loss), gpt.finish)

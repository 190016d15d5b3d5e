"""Our transformer as a function of plain arrays, for the libraries that differentiate such: JAX and HIPS autograd.

One loss serves both. JAX compiles it with its gradient and the update into one program; HIPS autograd records it at
each step, as we do. Both carry their state as {name: array}.
"""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..adapters.lora import lora_layers
from ..nn.gpt import GPT, GPTConfig
from ..studies.turns import Contender, LeftOut
from .pytorch import LEARNING_RATE

BETA_1, BETA_2, EPS, DECAY = 0.9, 0.999, 1e-8, 0.01  # AdamW's defaults, here as in PyTorch


def gpt_loss(xp: Any, f: Any, p: dict, config: GPTConfig, scale: dict[str, float], tokens: Any, targets: Any) -> Any:
    """The mean cross-entropy in nats of a GPT with LoRA.   tokens, targets: (B, T)

    xp: the array library; f: its softmax, log_softmax and gelu; p: {name: array}; scale: {LoRA layer: s}.
    """
    (b, t), seen = tokens.shape, np.tri(tokens.shape[1], dtype=bool)

    def linear(h: Any, name: str) -> Any:
        y = h @ p[f"{name}.weight"].T + p[f"{name}.bias"]
        return y + scale[name] * ((h @ p[f"{name}.lora_A"].T) @ p[f"{name}.lora_B"].T) if name in scale else y

    def norm(h: Any, name: str) -> Any:
        centred = h - xp.mean(h, axis=-1, keepdims=True)
        k = 1 / xp.sqrt(xp.mean(centred * centred, axis=-1, keepdims=True) + 1e-5)
        return centred * k * p[f"{name}.weight"] + p[f"{name}.bias"]

    def heads(h: Any) -> Any:
        return xp.transpose(xp.reshape(h, (b, t, config.n_head, -1)), (0, 2, 1, 3))  # (B, H, T, D)

    x = p["wte.weight"][tokens] + p["wpe.weight"][:t]  # (B, T, C)
    for i in range(config.n_layer):
        block, z = f"blocks.{i}", norm(x, f"blocks.{i}.ln_1")
        q, k, v = (heads(linear(z, f"{block}.attn.{kind}_proj")) for kind in "qkv")
        scores = (q @ xp.swapaxes(k, -1, -2)) * (1 / math.sqrt(config.n_embd // config.n_head))  # (B, H, T, T)
        a = f.softmax(xp.where(seen, scores, -math.inf)) @ v  # (B, H, T, D)
        a = xp.reshape(xp.transpose(a, (0, 2, 1, 3)), (b, t, -1))  # (B, T, C)
        x = x + linear(a, f"{block}.attn.o_proj")
        x = x + linear(f.gelu(linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.up_proj")), f"{block}.mlp.down_proj")
    rows = xp.reshape(f.log_softmax(norm(x, "ln_f") @ p["wte.weight"].T), (b * t, -1))  # (B T, V)
    return -xp.mean(rows[np.arange(b * t), xp.reshape(targets, (b * t,))])


def adamw(xp: Any, p: Any, g: Any, m: Any, v: Any, t: Any) -> tuple:
    """AdamW's update of one parameter at its t-th step: -> p, m, v (the equations are in `training/optim.py`)"""
    m = BETA_1 * m + (1 - BETA_1) * g
    v = BETA_2 * v + (1 - BETA_2) * g * g
    root = xp.sqrt(v / (1 - BETA_2**t)) + EPS
    return p * (1 - LEARNING_RATE * DECAY) - (LEARNING_RATE / (1 - BETA_1**t)) * m / root, m, v


def update(xp: Any, state: dict[str, tuple], gradients: dict, t: Any) -> dict[str, tuple]:
    """{name: (p, m, v)} one step later."""
    new = {}
    for name, (p, m, v) in state.items():
        new[name] = adamw(xp, p, gradients[name], m, v, t)
    return new


def split(model: GPT, asarray: Callable) -> tuple[dict[str, tuple], dict[str, Any]]:
    """Copies of a model's parameters: -> {trained name: (p, m = 0, v = 0)}, {frozen name: p}"""
    state, frozen = {}, {}
    for name, p in model.named_parameters():
        value = asarray(p.numpy().copy())
        if p.requires_grad:
            state[name] = (value, asarray(np.zeros_like(p.numpy())), asarray(np.zeros_like(p.numpy())))
        else:
            frozen[name] = value
    return state, frozen


def jax_step(model: GPT, tokens: np.ndarray, targets: np.ndarray, device: str = "cpu") -> Contender:
    """A training step in JAX: value_and_grad and AdamW in one compiled program that may overwrite its old state."""
    try:
        import jax
        import jax.numpy as jnp
    except ImportError:
        raise LeftOut("JAX is not installed: pip install 'minilora[peers]'") from None
    jax.config.update("jax_platforms", device)
    f = SimpleNamespace(softmax=jax.nn.softmax, log_softmax=jax.nn.log_softmax, gelu=jax.nn.gelu)  # gelu: tanh's form
    scale = {name: layer.config.scale for name, layer in lora_layers(model).items()}
    state, frozen = split(model, jnp.asarray)
    x, y = jnp.asarray(tokens), jnp.asarray(targets)

    def step(state: dict, frozen: dict, t: Any) -> tuple:
        loss = lambda trained: gpt_loss(jnp, f, {**frozen, **trained}, model.config, scale, x, y)
        value, gradients = jax.value_and_grad(loss)({name: p for name, (p, _, _) in state.items()})
        return value, update(jnp, state, gradients, t)

    program, steps = jax.jit(step, donate_argnums=0), 0

    def call() -> float:
        nonlocal state, steps
        steps += 1
        value, state = jax.block_until_ready(program(state, frozen, steps))
        return float(value)

    return Contender("JAX compiled", call)


def autograd_step(model: GPT, tokens: np.ndarray, targets: np.ndarray, device: str = "cpu") -> Contender:
    """A training step in HIPS autograd, on NumPy's own threads."""
    try:
        import autograd.numpy as anp
        from autograd import value_and_grad
    except ImportError:
        raise LeftOut("HIPS autograd is not installed: pip install 'minilora[peers]'") from None

    def log_softmax(z: Any) -> Any:
        z = z - anp.max(z, axis=-1, keepdims=True)
        return z - anp.log(anp.sum(anp.exp(z), axis=-1, keepdims=True))

    def softmax(z: Any) -> Any:
        e = anp.exp(z - anp.max(z, axis=-1, keepdims=True))
        return e / anp.sum(e, axis=-1, keepdims=True)

    def gelu(z: Any) -> Any:
        return 0.5 * z * (1 + anp.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z * z * z)))

    f = SimpleNamespace(softmax=softmax, log_softmax=log_softmax, gelu=gelu)
    scale = {name: layer.config.scale for name, layer in lora_layers(model).items()}
    (state, frozen), steps = split(model, np.asarray), 0
    differentiate = value_and_grad(
        lambda trained: gpt_loss(anp, f, {**frozen, **trained}, model.config, scale, tokens, targets)
    )

    def call() -> float:
        nonlocal state, steps
        steps += 1
        value, gradients = differentiate({name: p for name, (p, _, _) in state.items()})
        state = update(np, state, gradients, steps)
        return float(value)

    return Contender("HIPS autograd", call)

"""A LoRA step on a model that others trained: ours beside transformers and PEFT, on the same weights and text.

The weights are drawn, in the shape of SmolLM2 135M, so that nothing has to be fetched: what they are changes no time.
"""

import contextlib
import io
import warnings
from importlib import import_module
from typing import Any

import numpy as np

from ..adapters.lora import LoRAConfig, add_lora
from ..interop.names import module_names
from ..nn.architectures import Architecture, find
from ..nn.transformer import Transformer
from ..studies.turns import Contender, LeftOut, ratio, take_turns
from ..training.loop import train_step
from ..training.optim import AdamW
from .processes import CLEAR, fresh, status
from .pytorch import LEARNING_RATE, import_torch
from .rows import PEFT_EAGER, REAL_MEMORY, REAL_STEP, Row, row

NAME, LENGTH = "smollm2-135m", 256  # the model, and the tokens of its one text
RANK, ALPHA, TARGETS = 8, 16, ("q_proj", "v_proj")


def real_rows(turns: int, architecture: Architecture | None = None) -> list[Row]:
    """Seconds of a step, and the whole process's peak memory, ours and theirs.

    Raises LeftOut without PyTorch, transformers or PEFT, and ArithmeticError where the two losses differ by more than
    1e-4 of them.
    """
    a = architecture or find(NAME)
    ours, theirs = our_step(a), their_step(a)
    losses = [(ours(), theirs()) for _ in range(2)]  # after one update they show that the gradients are the same
    if not all(abs(one - other) <= 1e-4 * abs(other) for one, other in losses):
        raise ArithmeticError(f"bench: losses of {a.name} {losses}, ours and theirs: no fair comparison")
    times = take_turns([Contender("ours", ours), Contender("theirs", theirs)], turns)
    rows = [row(REAL_STEP, NAME, PEFT_EAGER, "s", ratio(times["ours"], times["theirs"]))]
    if architecture is None and CLEAR.exists():
        peaks = [[fresh(f"from {__name__} import peak; print(peak({side!r}))")] for side in ("ours", "theirs")]
        rows.append(row(REAL_MEMORY, NAME, PEFT_EAGER, "bytes", ratio(*np.array(peaks, float))))
    return rows


def our_step(a: Architecture) -> Any:
    """A function that takes one step on one text of LENGTH tokens and returns the loss."""
    model, (tokens, targets) = adapted(a), text(a)
    optimizer = AdamW(model.named_parameters(), LEARNING_RATE)
    return lambda: train_step(model, optimizer, tokens, targets)


def adapted(a: Architecture) -> Transformer:
    """The model with LoRA on q and v, drawn from one seed."""
    return add_lora(Transformer(a, rng=0), LoRAConfig(RANK, ALPHA, TARGETS), rng=1)


def text(a: Architecture) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and targets, (1, T)"""
    ids = np.random.default_rng(2).integers(0, a.vocab_size, (1, min(LENGTH, a.context) + 1))
    return ids[:, :-1], ids[:, 1:]


def their_step(a: Architecture) -> Any:
    """The same of transformers' Llama and PEFT's LoRA, eager, on copies of our weights."""
    torch = import_torch()
    try:
        peft, transformers = (import_module(name) for name in ("peft", "transformers"))
    except ImportError as error:
        raise LeftOut(f"{error.name} is not installed: pip install 'minilora[peers]'") from None
    ours = adapted(a)
    state, places = ours.state_dict(), module_names(a)
    sizes = dict(hidden_size=a.width, intermediate_size=a.mlp_width, num_hidden_layers=a.layers)
    heads = dict(num_attention_heads=a.heads, num_key_value_heads=a.key_value_heads, head_dim=a.dim)
    config = transformers.LlamaConfig(
        vocab_size=a.vocab_size, max_position_embeddings=a.context, rms_norm_eps=a.norm_eps, rope_theta=a.rope_base,
        tie_word_embeddings=a.head == "tied", attn_implementation="eager", bos_token_id=None, eos_token_id=None,
        **sizes, **heads,
    )  # fmt: skip
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # what they say of themselves
        warnings.simplefilter("ignore")
        lora = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS))
        model = peft.get_peft_model(transformers.LlamaForCausalLM(config).float(), lora)
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in state.items():
            path, _, part = name.rpartition(".")
            inside = {"lora_A": "lora_A.default.weight", "lora_B": "lora_B.default.weight"}.get(part, part)
            theirs = f"base_model.model.{places[path].module}"
            base = f"{theirs}.base_layer.{inside}"
            named[base if base in named else f"{theirs}.{inside}"].copy_(torch.tensor(value))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, LEARNING_RATE, weight_decay=0.01)
    ids = torch.tensor(np.concatenate([text(a)[0], text(a)[1][:, -1:]], axis=1))

    def step() -> float:
        logits = model(ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def peak(side: str) -> int:
    """Bytes of physical memory that a process which takes three steps has at its peak, once its model stands."""
    a = find(NAME)
    step = our_step(a) if side == "ours" else their_step(a)
    CLEAR.write_text("5")  # forget what building took: proc(5)
    for _ in range(3):
        step()
    return status("VmHWM")

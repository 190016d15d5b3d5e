"""The checks of lecture 9's exercises, and our model as PEFT runs it."""

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..analysis import counting
from ..nn.gpt import GPTConfig
from .exercises import exercise, same


@exercise("9.1")
def own_card(answer: float) -> str | None:
    """GB of QLoRA on llama-2-13b: rank 16 on every matrix, batch 1, 1,024 tokens."""
    memory = lambda bits: sum(_memory("llama-2-13b", 16, 1024, bits).values()) / 1e9
    if same(answer, memory(None), tolerance=1e-3) is None:
        return "that is LoRA in 16 bits: bits=4"
    if same(answer, 1e9 * memory(4), tolerance=1e-3) is None:
        return "in GB, of 10^9 bytes"
    hint = "the sum of training_memory_bytes, with batch=1, length=1024, bits=4, over 1e9"
    return same(answer, memory(4), hint, tolerance=1e-2)


def _memory(name: str, rank: int, length: int, bits: int | None) -> Mapping[str, int]:
    options: dict[str, Any] = {"rank": rank, "target_modules": ("*_proj",), "batch": 1, "engine": "flash"}
    return counting.count(name, "lora", length=length, bits=bits, **options).training_memory_bytes


@exercise("9.2")
def length_of_text(answer: int) -> str | None:
    """The shortest text whose activations are larger than QLoRA's weights, on llama-2-7b."""
    for length in (int(answer) - 1, int(answer)):
        memory = _memory("llama-2-7b", 8, length, 4)
        larger = memory["activations"] > memory["weights"]
        if larger and length < int(answer):
            return f"at {length} tokens they are larger already"
    return None if larger else f"at {length} tokens they are not larger: {memory['activations']:,} bytes"


@exercise("9.3")
def roofline_of_attention(intensity: Callable[[int, int], float]) -> str | None:
    """The intensity of q K^T for one new token and S cached ones, a head of dimension D, 16 bits: a function."""
    for S, D in ((100, 64), (5000, 128)):
        expected = 2 * S * D / (2 * (D + S * D + S))  # reads q and K, writes S scores
        close = [same(intensity(S, D), 2 * S * D / (2 * parts), tolerance=1e-3) for parts in (S * D, S * D + D)]
        if None in close:
            continue  # q or the scores left out: nearly nothing beside K
        if same(intensity(S, D), 2 * expected, tolerance=1e-3) is None:
            return "a number of 16 bits is 2 bytes"
        if (
            wrong := same(intensity(S, D), expected, "2 S D operations on the bytes of q, K and S scores", 1e-3)
        ) is not None:
            return wrong
    return None


@exercise("9.4")
def llamas_names(ours: Callable[[str], str]) -> str | None:
    """Our Transformer's name for a name of Llama's file: a function."""
    parts = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}
    wanted = {
        "model.embed_tokens.weight": "wte.weight",
        "model.norm.weight": "ln_f.weight",
        "lm_head.weight": "head.weight",
    }
    for layer in (0, 11):
        at, to = f"model.layers.{layer}.", f"blocks.{layer}."
        wanted |= {f"{at}input_layernorm.weight": f"{to}ln_1.weight"}
        wanted |= {f"{at}post_attention_layernorm.weight": f"{to}ln_2.weight"}
        for part, names in parts.items():
            room = part.replace("self_attn", "attn")
            wanted |= {f"{at}{part}.{name}.weight": f"{to}{room}.{name}.weight" for name in names}
    for name, right in wanted.items():
        if (found := ours(name)) != right:
            return f"{name} becomes {found!r}; see counting.parameters(counting.find('llama-2-7b')) for our names"
    return None


def in_peft(config: GPTConfig, state: Mapping[str, np.ndarray], rank: int) -> tuple | None:
    """Hugging Face's GPT-2 with these weights and PEFT's LoRA on c_attn, its B random; None without them.

    -> (logits, merged, A, B): two functions of tokens, before and after merging, and the factors of each layer:
    {layer: (rank, C)}, {layer: (3C, rank)}
    """
    try:
        peft, torch, transformers = map(importlib.import_module, ("peft", "torch", "transformers"))
    except ImportError:
        return None
    c = config
    sizes = dict(vocab_size=c.vocab_size, n_positions=c.block_size, n_embd=c.n_embd, n_layer=c.n_layer, n_head=c.n_head)
    peer = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=None, eos_token_id=None))
    weights = {name: torch.tensor(np.ascontiguousarray(array)) for name, array in state.items()}
    peer.load_state_dict({**weights, "lm_head.weight": weights["transformer.wte.weight"]})
    lora = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["c_attn"], fan_in_fan_out=True)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # between these libraries' own versions
        peer = peft.get_peft_model(peer, lora).eval()
    generator = torch.Generator().manual_seed(0)
    factors: dict[tuple[int, bool], np.ndarray] = {}
    for name, p in peer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1, generator=generator)
        if "lora_" in name:
            factors[int(name.split(".h.")[1].split(".")[0]), "lora_A" in name] = p.detach().numpy().copy()
    A, B = ({layer: array for (layer, is_A), array in factors.items() if is_A == which} for which in (True, False))

    def logits(tokens: np.ndarray, model: Any = peer) -> np.ndarray:
        with torch.no_grad():
            return model(torch.tensor(tokens)).logits.numpy()

    return logits, lambda tokens: logits(tokens, peer.merge_and_unload()), A, B

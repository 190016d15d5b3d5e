"""Adapters in files, made by hand from arrays: for the tests of what reads them."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

CONFIG = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj"],
    "task_type": "CAUSAL_LM",
}


def draw(m: int = 6, n: int = 5, r: int = 2, seed: int = 0, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    """B (m, r) and A (r, n), normal."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(m, r)).astype(dtype), rng.normal(size=(r, n)).astype(dtype)


def two(m: int = 6, n: int = 5, r: int = 2, seed: int = 0, dtype: str = "float32") -> dict:
    """{module: (B, A)} of two matrices in two layers."""
    names = ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj")
    return {name: draw(m, n, r, seed + i, dtype) for i, name in enumerate(names)}


def peft_folder(folder: Path, matrices: dict, others: dict | None = None, **config) -> Path:
    """A PEFT folder. matrices: {module: (B, A)}; others: tensors by their names."""
    folder.mkdir(parents=True, exist_ok=True)
    bare = ("prompt_embeddings",)  # PEFT's name of a prompt, which is in no module
    tensors = {name if name in bare else f"base_model.model.{name}": value for name, value in (others or {}).items()}
    for name, (B, A) in matrices.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = A
        tensors[f"base_model.model.{name}.lora_B.weight"] = B
    save_file(
        {name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / "adapter_model.safetensors"
    )
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    return folder


def kohya_file(
    path: Path, matrices: dict, alpha: float | None = 4.0, others: dict | None = None, **metadata: str
) -> Path:
    """A single file of image tools. matrices: {module: (B, A)}"""
    tensors = dict(others or {})
    for name, (B, A) in matrices.items():
        tensors |= {f"{name}.lora_down.weight": A, f"{name}.lora_up.weight": B}
        if alpha is not None:
            tensors[f"{name}.alpha"] = np.array(alpha, A.dtype)
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path, metadata or None)
    return path

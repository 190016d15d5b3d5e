"""Training steps of the models of pictures beside the same models in PyTorch, from copies of our parameters.

Another model is another entry of MODELS: a name, and a function of "lora" or "full" that gives our step and PyTorch's.
Both compute the same losses, which `image_rows` sees to before it times them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..adapters.lora import add_lora
from ..nn.diffusion import EPS, DiT, DiTConfig, waves_of
from ..nn.vision import ViT, ViTConfig
from ..studies.turns import Contender, ratio, take_turns
from ..training.loop import train_step
from ..training.optim import AdamW
from .peers import LORA, METHODS, compare_losses, in_team
from .pytorch import LEARNING_RATE, TorchGPT
from .rows import EAGER, TRAINING, Row, row
from .segmenter import segmenter_steps

BATCH = 64  # pictures of 16 x 16


class TorchViT(TorchGPT):
    """The same vision transformer: a parameter for each of ours, trained where ours is."""

    def norm(self, h: Any, name: str) -> Any:
        """Layer norm, with its own epsilon.   (..., C) -> (..., C)"""
        scale, shift = self.p[f"{name}.weight"], self.p[f"{name}.bias"]
        eps = self.config.norm_eps  # type: ignore[attr-defined]
        return self.functional.layer_norm(h, h.shape[-1:], scale, shift, eps)

    def logits(self, x: Any, cache: list | None = None) -> Any:
        """(B, S, S) pictures -> (B, L)"""
        c: Any = self.config
        F, b = self.functional, len(x)
        kernel = self.p["patch_proj.weight"].view(-1, c.channels, c.patch_size, c.patch_size)
        h = F.conv2d(x.view(b, c.channels, *x.shape[-2:]), kernel, self.p["patch_proj.bias"], c.patch_size)
        first = self.p["class_token"].expand(b, 1, -1)
        h = self.torch.cat([first, h.flatten(2).transpose(1, 2)], 1) + self.p["wpe.weight"]  # (B, T, C)
        for i in range(c.n_layer):
            block = f"blocks.{i}"
            h = h + self.both_ways(self.norm(h, f"{block}.ln_1"), block, c.n_head)
            up = F.gelu(self.linear(self.norm(h, f"{block}.ln_2"), f"{block}.mlp.up_proj"))
            h = h + self.linear(up, f"{block}.mlp.down_proj")
        return self.linear(self.norm(h[:, 0], "ln_f"), "classifier")  # (B, L)


def vit_steps(method: str) -> tuple[Contender, Contender]:
    """A step of a vision transformer on random pictures, ours and PyTorch's."""
    config, rng = ViTConfig(), np.random.default_rng(0)
    images = rng.random((BATCH, config.image_size, config.image_size), dtype=np.float32)
    labels = rng.integers(0, config.labels, BATCH)
    model = ViT(config)
    if method == "lora":
        add_lora(model, LORA)
    theirs: Any = TorchViT(model)  # type: ignore[arg-type]
    optimizer, x, y = AdamW(model.named_parameters(), LEARNING_RATE), theirs.tensor(images), theirs.tensor(labels)
    other = theirs.torch.optim.AdamW(theirs.trained(), LEARNING_RATE)
    ours = Contender("minilora", in_team(model, optimizer, lambda: train_step(model, optimizer, images, labels)))
    return ours, Contender(EAGER, lambda: theirs.train_step(other, x, y))


class TorchDiT(TorchGPT):
    """The same diffusion transformer: a parameter for each of ours, trained where ours is."""

    def norm(self, h: Any, shift: Any, scale: Any) -> Any:  # type: ignore[override]
        """A layer norm whose scale and shift the condition gives.   (B, T, C), (B, C) -> (B, T, C)"""
        return self.functional.layer_norm(h, h.shape[-1:], eps=EPS) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)

    def noise(self, x: Any, waves: Any, classes: Any) -> Any:
        """(B, S, S) pictures, (B, C) cosines and sines of their times, (B,) classes -> (B, S, S)"""
        c: Any = self.config
        F, p = self.functional, c.patch_size
        h = self.linear(F.unfold(x[:, None], p, stride=p).transpose(1, 2), "patch_proj") + self.p["wpe.weight"]
        c_t = self.linear(F.silu(self.linear(waves, "time_mlp.0")), "time_mlp.1")
        cond = F.silu(c_t + F.embedding(classes, self.p["class_table.weight"]))  # (B, C)
        for i in range(c.n_layer):
            block = f"blocks.{i}"
            shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.linear(cond, f"{block}.ada_proj").chunk(6, dim=1)
            z = self.both_ways(self.norm(h, shift_1, scale_1), block, c.n_head)
            h = h + gate_1.unsqueeze(1) * z
            up = F.gelu(self.linear(self.norm(h, shift_2, scale_2), f"{block}.mlp.up_proj"), approximate="tanh")
            h = h + gate_2.unsqueeze(1) * self.linear(up, f"{block}.mlp.down_proj")
        shift, scale = self.linear(cond, "ada_proj").chunk(2, dim=1)
        patches = self.linear(self.norm(h, shift, scale), "head").transpose(1, 2)
        return F.fold(patches, (c.image_size,) * 2, p, stride=p)[:, 0]


def dit_steps(method: str) -> tuple[Contender, Contender]:
    """A step of a diffusion transformer on random pictures, times and classes, ours and PyTorch's."""
    config, rng = DiTConfig(), np.random.default_rng(0)
    images, targets = rng.standard_normal((2, BATCH, config.image_size, config.image_size), dtype=np.float32)
    times, classes = rng.integers(1, 1001, BATCH), rng.integers(0, config.classes, BATCH)
    model = DiT(config)
    for p in model.parameters():  # away from zero, where all gates are at first
        p.data += rng.normal(0, 0.02, p.shape).astype(np.float32)
        p.changed()
    if method == "lora":
        add_lora(model, LORA)
    theirs: Any = TorchDiT(model)  # type: ignore[arg-type]
    optimizer = AdamW(model.named_parameters(), LEARNING_RATE)
    other = theirs.torch.optim.AdamW(theirs.trained(), LEARNING_RATE)
    x, y, wanted = (theirs.tensor(array) for array in (images, classes, targets))

    def their_step() -> float:
        waves = theirs.tensor(waves_of(times, config.n_embd).astype(np.float32))  # each step has other times
        loss = theirs.functional.mse_loss(theirs.noise(x, waves, y), wanted)
        other.zero_grad(set_to_none=True)
        loss.backward()
        other.step()
        return loss.item()

    step = lambda: train_step(model, optimizer, (images, times, classes), targets)
    ours = Contender("minilora", in_team(model, optimizer, step))
    return ours, Contender(EAGER, their_step)


MODELS: dict[str, Callable[[str], tuple[Contender, Contender]]] = {
    "vit": vit_steps, "dit": dit_steps, "segmenter": segmenter_steps,
}  # fmt: skip


def image_rows(name: str, turns: int) -> list[Row]:
    """A LoRA step and a full one of a model of pictures, beside PyTorch eager. Raises LeftOut without PyTorch."""
    found = []
    for method in METHODS:
        ours, theirs = MODELS[name](method)
        [difference] = compare_losses(ours, [theirs]).values()
        times = take_turns([ours, theirs], turns)
        told = ratio(times["minilora"], times[EAGER])
        found.append(row(TRAINING[method], name, EAGER, "s", told, details={"loss_difference": difference}))
    return found

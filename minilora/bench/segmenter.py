"""The segmenter in PyTorch, from copies of our parameters: the peer of its training step, and of its tests.

Convolutions cut the patches and look at the windows there; pixels stand in their picture's order, not in the patches'.
"""

from typing import Any

import numpy as np

from ..adapters.lora import add_lora
from ..nn.segmenter import BOX_KINDS, Segmenter
from ..studies.turns import Contender
from ..training.optim import AdamW
from ..training.scenes import draw_scenes
from ..training.segmentation import segment_step
from .peers import LORA, in_team
from .pytorch import LEARNING_RATE, TorchGPT
from .rows import EAGER

BATCH = 16  # pictures of 48 x 48


class TorchSegmenter(TorchGPT):
    """The same segmenter: a parameter for each of ours, trained where ours is."""

    def block(self, h: Any, name: str) -> Any:
        """A block that looks both ways.   (B, T, C) -> (B, T, C)"""
        heads = self.config.heads  # type: ignore[attr-defined]
        h = h + self.both_ways(self.norm(h, f"{name}.ln_1"), name, heads)
        up = self.functional.gelu(self.linear(self.norm(h, f"{name}.ln_2"), f"{name}.mlp.up_proj"), approximate="tanh")
        return h + self.linear(up, f"{name}.mlp.down_proj")

    def places(self, points: Any) -> Any:
        """Fourier features of places.   (..., 2) -> (..., C)"""
        c: Any = self.config
        k = self.torch.arange(c.frequencies) - 1
        angles = (self.torch.pi * (points[..., None] + 0.5) / c.size * 2.0**k).flatten(-2)
        return self.functional.linear(self.torch.cat([angles.sin(), angles.cos()], -1), self.p["place_proj.weight"])

    def masks(self, images: Any, prompts: Any) -> Any:
        """The logits.   (B, S, S), (B, 4) -> (B, S, S)"""
        torch, F, p, c = self.torch, self.functional, self.p, self.config
        config: Any = c
        patch, width, features, window = config.patch, config.width, config.features, config.window
        n, pictures = config.size // patch, images[:, None]
        kernel = p["patch_proj.weight"].view(width, 1, patch, patch)
        h = F.conv2d(pictures, kernel, p["patch_proj.bias"], patch).flatten(2).mT  # (B, N, C)
        middle = (torch.arange(n, dtype=images.dtype) + 0.5) * patch - 0.5
        y, x = torch.meshgrid(middle, middle, indexing="ij")
        h = h + self.places(torch.stack([x, y], -1).view(-1, 2))
        for i in range(config.layers):
            h = self.block(h, f"blocks.{i}")
        h = self.norm(h, "ln_f")

        wide = F.pad(pictures, (window // 2,) * 4, mode="replicate")
        corners = prompts.view(-1, 2, 2)
        at = corners.mean(1).round().long()
        views = wide[:, 0].unfold(1, window, 1).unfold(2, window, 1)  # (B, S, S, w, w)
        there = views[torch.arange(len(images)), at[:, 1], at[:, 0]].flatten(1)[:, None]
        box = (prompts[:, :2] != prompts[:, 2:]).any(1)[:, None]
        kinds = torch.where(box, torch.tensor(BOX_KINDS), 1)
        asked = self.places(corners) + p["kinds.weight"][kinds] + self.linear(there, "there_proj")
        z = torch.cat([p["kinds.weight"][0].expand(len(images), 1, width), asked, h], 1)  # (B, 3 + N, C)
        for i in range(config.decoder_layers):
            z = self.block(z, f"decoder.{i}")
        z = self.norm(z, "ln_d")

        up = self.linear(z[:, 3:], "patch_up").mT.unflatten(1, (patch * patch, features)).transpose(1, 2)
        up = F.pixel_shuffle(up.flatten(1, 2).unflatten(2, (n, n)), patch)  # (B, F, S, S)
        around = F.conv2d(wide, p["window_up.weight"].view(features, 1, window, window))
        h = F.gelu(up + around, approximate="tanh").movedim(1, -1)
        h = F.gelu(self.linear(h, "pixel_proj"), approximate="tanh")  # (B, S, S, F)
        wanted = self.linear(z[:, 0], "mask_proj")
        return torch.einsum("bxyf,bf->bxy", h, wanted[:, :features]) + wanted[:, features, None, None]

    def loss(self, x: Any, y: Any) -> Any:
        """Cross-entropy over pixels and the Dice loss.   x: (pictures, prompts), y: masks -> ()"""
        logits = self.masks(*x)
        p, axes = logits.sigmoid(), (1, 2)
        dice = 1 - (2 * (p * y).sum(axes) + 1) / (p.sum(axes) + y.sum(axes) + 1)
        return self.functional.binary_cross_entropy_with_logits(logits, y) + dice.mean()


def segmenter_steps(method: str) -> tuple[Contender, Contender]:
    """A step of a segmenter on scenes of shapes, ours and PyTorch's."""
    scenes, model = draw_scenes("shapes", BATCH), Segmenter()
    if method == "lora":
        add_lora(model, LORA)
    theirs: Any = TorchSegmenter(model)  # type: ignore[arg-type]
    optimizer, given = AdamW(model.named_parameters(), LEARNING_RATE), (scenes.images, scenes.boxes, scenes.masks)
    x, y = tuple(map(theirs.tensor, given[:2])), theirs.tensor(scenes.masks.astype(np.float32))
    other = theirs.torch.optim.AdamW(theirs.trained(), LEARNING_RATE)
    ours = Contender("minilora", in_team(model, optimizer, lambda: segment_step(model, optimizer, *given)))
    return ours, Contender(EAGER, lambda: theirs.train_step(other, x, y))

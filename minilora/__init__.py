"""minilora: LoRA from scratch in NumPy, with the autograd engine and the transformer it needs.

>>> import minilora as ml
>>> model = ml.add_lora(ml.load_model("base"), ml.LoRAConfig(rank=8))
>>> sum(p.size for p in model.parameters(trainable=True)), model.count()
(16384, 838400)
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING

from . import interrupt as interrupt  # before anything that takes time

# isort: split
from . import analysis
from .adapters.attach import adapter_disabled, add_adapter, remove_adapter, set_adapter
from .adapters.bottleneck import HoulsbyConfig, PfeifferConfig
from .adapters.combine import combine_adapters
from .adapters.dora import DoRAConfig
from .adapters.ia3 import IA3Config
from .adapters.lora import LoRAConfig, add_lora, delta_weights, lora_backward, lora_forward
from .adapters.lora_fa import LoRAFAConfig
from .adapters.lora_ga import add_lora_ga
from .adapters.lora_plus import lora_plus
from .adapters.merge import merge_adapter, unmerge_adapter
from .adapters.miss import MiSSConfig
from .adapters.prefix import PrefixConfig, fold_prefix
from .adapters.prompt import PromptConfig
from .adapters.qlora import quantize_model, requantize
from .adapters.quantization import quantize
from .adapters.selected import BitFitConfig, FullConfig, LastBlocksConfig
from .adapters.serving import rows_use
from .adapters.vera import VeRAConfig
from .autograd import ops
from .autograd.backend import to_numpy, use_backend
from .autograd.gradcheck import gradcheck
from .autograd.tensor import Tensor, grad, no_grad
from .course.claims import holds
from .course.exercises import check
from .interop.adapters import load_adapter, save_adapter
from .nn.characters import decode, encode
from .nn.classifier import add_classifier
from .nn.encoder import Encoder as _Encoder  # noqa: F401  (which Transformer makes of an encoder's architecture)
from .nn.gpt import GPT, GPTConfig
from .nn.storage import load_model, save_model
from .nn.transformer import Transformer
from .training.classify import classify, load_labels, unicode_categories
from .training.corpus import load_corpus
from .training.loop import evaluate, train, train_step
from .training.optim import SGD, AdamW
from .training.pairs import load_pairs
from .training.reinforce import reinforce, reinforce_step, write_episodes
from .training.run import Run, Settings

merge_lora, unmerge_lora, remove_lora = (
    merge_adapter,
    unmerge_adapter,
    remove_adapter,
)  # their names in the paper's story
lora_disabled = adapter_disabled

if _TYPE_CHECKING:
    from .interop.pretrained import load_pretrained, save_pretrained
    from .nn.diffusion import DiT, DiTConfig, load_diffusion, save_diffusion
    from .nn.segmenter import Segmenter, SegmenterConfig, load_segmenter, save_segmenter
    from .nn.vision import ViT, ViTConfig, load_vision, save_vision
    from .pictures.tape import draw
    from .training.diffusion import draw_letters, train_diffusion
    from .training.glyphs import draw_glyphs
    from .training.images import image_folder, scene_folder
    from .training.images import load_digits as load_digits
_LATER = {  # what is imported when it is asked for: not all have others' files or pictures, and it takes its time
    "draw": "pictures.tape", "draw_glyphs": "training.glyphs",
    **dict.fromkeys(("load_pretrained", "save_pretrained"), "interop.pretrained"),
    **dict.fromkeys(("DiT", "DiTConfig", "load_diffusion", "save_diffusion"), "nn.diffusion"),
    **dict.fromkeys(("Segmenter", "SegmenterConfig", "load_segmenter", "save_segmenter"), "nn.segmenter"),
    **dict.fromkeys(("ViT", "ViTConfig", "load_vision", "save_vision"), "nn.vision"),
    **dict.fromkeys(("draw_letters", "train_diffusion"), "training.diffusion"),
    **dict.fromkeys(("image_folder", "load_digits", "scene_folder"), "training.images"),
}  # fmt: skip


def __getattr__(name: str) -> object:  # asked only for what is not there
    if name in _LATER:
        import importlib

        return getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)
    from .nn.habits import PACKAGE, advice

    table = {primitive: f"ml.ops.{primitive}" for primitive in ops.PRIMITIVES} | PACKAGE
    raise AttributeError(f"minilora has no {name!r}{advice(name, table, __all__)}")


def __dir__() -> list[str]:
    return [*globals(), *_LATER]


__version__ = "0.1.0"

__all__ = [
    "AdamW",
    "BitFitConfig",
    "DiT",
    "DiTConfig",
    "DoRAConfig",
    "FullConfig",
    "GPT",
    "GPTConfig",
    "HoulsbyConfig",
    "IA3Config",
    "LastBlocksConfig",
    "LoRAConfig",
    "LoRAFAConfig",
    "MiSSConfig",
    "PfeifferConfig",
    "PrefixConfig",
    "PromptConfig",
    "Run",
    "SGD",
    "Segmenter",
    "SegmenterConfig",
    "Settings",
    "Tensor",
    "Transformer",
    "VeRAConfig",
    "ViT",
    "ViTConfig",
    "adapter_disabled",
    "add_adapter",
    "add_classifier",
    "add_lora",
    "add_lora_ga",
    "analysis",
    "check",
    "classify",
    "combine_adapters",
    "decode",
    "delta_weights",
    "draw",
    "draw_glyphs",
    "draw_letters",
    "encode",
    "evaluate",
    "fold_prefix",
    "grad",
    "gradcheck",
    "holds",
    "image_folder",
    "load_adapter",
    "load_corpus",
    "load_diffusion",
    "load_labels",
    "load_model",
    "load_pretrained",
    "load_pairs",
    "load_segmenter",
    "load_vision",
    "lora_backward",
    "lora_disabled",
    "lora_forward",
    "lora_plus",
    "merge_adapter",
    "merge_lora",
    "no_grad",
    "ops",
    "quantize",
    "quantize_model",
    "reinforce",
    "reinforce_step",
    "remove_adapter",
    "remove_lora",
    "requantize",
    "rows_use",
    "save_adapter",
    "save_diffusion",
    "save_model",
    "save_pretrained",
    "save_segmenter",
    "save_vision",
    "scene_folder",
    "set_adapter",
    "to_numpy",
    "train",
    "train_diffusion",
    "train_step",
    "unicode_categories",
    "unmerge_adapter",
    "unmerge_lora",
    "use_backend",
    "write_episodes",
]

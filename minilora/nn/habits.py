"""What people write who come from PyTorch, transformers or PEFT, and what to write here.

A name that means the same and does no harm works (`model.eval()`, `model.to("float64")`); any other is an error,
in one line that says what to write. Three tables: attributes of the package, attributes of a module, and settings.
"""

import dataclasses
import functools
import typing
from collections.abc import Iterable
from typing import Any

from ..autograd.signatures import in_its_name, misfit, shown

_ARRAY = 'ml.Tensor(array): arrays are made by NumPy, and dtypes are its names, such as "float32"'
_LAYERS = "from minilora.nn.layers import Linear, Embedding, LayerNorm"
_READ = "ml.load_pretrained(place) for a model, ml.load_adapter(model, path) for an adapter"
_WRITE = "ml.save_pretrained(model, folder) for a model, ml.save_adapter(model, path) for an adapter"
_OWN = "ml.load_model(path), ml.save_model(model, path) for a model; ml.load_adapter, ml.save_adapter for an adapter"
_GPU = 'ml.use_backend("cupy") before the model is made or loaded'
_DROPOUT = "model.loss(tokens, targets, rng), or train_step(..., rng=rng): dropout acts where a generator is given"
_FREEZE = "p.requires_grad = False for p in model.parameters(), or ml.add_lora, which freezes the base"

PACKAGE: dict[str, str] = {  # a name that `ml` lacks -> what to write
    "AutoModelForCausalLM": _READ, "PeftModel": _READ, "load": _OWN, "save": _OWN, "device": _GPU, "cuda": _GPU,
    "LoraConfig": "ml.LoRAConfig(rank=, alpha=, target_modules=)", "LoraModel": "ml.add_lora(model, ml.LoRAConfig())",
    "VeraConfig": "ml.VeRAConfig(rank=, target_modules=)", "MissConfig": "ml.MiSSConfig(rank=, target_modules=)",
    **dict.fromkeys(("LoraGAConfig", "preprocess_loraga"), "ml.add_lora_ga(model, config, batches)"),
    "create_lorafa_optimizer": "ml.LoRAFAConfig(rank=, alpha=)",
    "LoHaConfig": "ml.LoRAConfig(rank=, alpha=)", "PromptTuningConfig": "ml.PromptConfig(tokens=)",
    "PrefixTuningConfig": "ml.PrefixConfig(tokens=)", "get_peft_model": "ml.add_lora(model, ml.LoRAConfig())",
    "inject_adapter_in_model": "ml.add_adapter(model, config)", "BitsAndBytesConfig": 'ml.quantize_model(model, "nf4")',
    "prepare_model_for_kbit_training": 'ml.quantize_model(model, "nf4")', "GPT2Config": "ml.GPTConfig(...)",
    "GPT2LMHeadModel": "ml.GPT(ml.GPTConfig(...))", "Trainer": "ml.train(ml.Run(model, corpus, ml.Settings()))",
    "TrainingArguments": "ml.Settings(steps=, lr=)", "Dataset": "ml.load_corpus(name_or_path)",
    "DataLoader": "corpus.batch(batch_size, block_size, rng)", "load_dataset": "ml.load_corpus(name_or_path)",
    "AutoTokenizer": "model.tokenizer", "tokenizer": "model.tokenizer, or ml.encode(text) and ml.decode(tokens)",
    "optim": "ml.AdamW, ml.SGD", "Adam": "ml.AdamW(parameters, weight_decay=0)",
    "functional": "ml.ops", "F": "ml.ops",
    "CrossEntropyLoss": "ml.ops.cross_entropy(logits, targets)", "GELU": "ml.ops.gelu", "ReLU": "ml.ops.relu",
    "Dropout": "ml.ops.dropout(x, p, rng)", "Parameter": "ml.Tensor(data, requires_grad=True)",
    "Module": "from minilora.nn.module import Module", "cat": "ml.ops.concatenate",
    "Sequential": "a list of modules", "ModuleList": "a list of modules",
    "ModuleDict": "a dictionary of modules", "Linear": _LAYERS, "Embedding": _LAYERS, "LayerNorm": _LAYERS,
    "manual_seed": "a seed or a numpy Generator where numbers are drawn: rng=0", "inference_mode": "ml.no_grad()",
    "enable_grad": "ml.no_grad() around what needs no gradient", "set_grad_enabled": "ml.no_grad()",
    **dict.fromkeys(("tensor", "as_tensor", "from_numpy", "zeros", "ones", "randn", "rand", "arange", "eye"), _ARRAY),
    **dict.fromkeys(("float16", "float32", "float64", "bfloat16", "int64", "long", "array"), _ARRAY),
}  # fmt: skip

MODULE: dict[str, str] = {  # a name that a module lacks -> what to write
    "cuda": _GPU, "cpu": "ml.to_numpy(array) for an array", "device": _GPU, "half": 'model.astype("float16")',
    "float": 'model.astype("float32")', "double": 'model.astype("float64")', "bfloat16": 'model.astype("float16")',
    "type": "model.astype(dtype)", "dtype": "model.parameters()[0].dtype", "training": _DROPOUT,
    "named_children": "model.named_modules()", "children": "model.named_modules()", "modules": "model.named_modules()",
    "get_submodule": "model.get_module(name)", "get_parameter": "dict(model.named_parameters())[name]",
    "buffer": "model.named_buffers()", "num_parameters": "model.count()", "numel": "model.count()",
    "requires_grad_": _FREEZE, "freeze": _FREEZE, "apply": "for name, module in model.named_modules(): ...",
    "register_parameter": "module.name = ml.Tensor(data, requires_grad=True)", "add_module": "module.name = other",
    "register_module": "module.name = other", "register_buffer": "module.name = array, and name it in buffers()",
    "register_forward_hook": "model.set_module(name, a module that looks on)",
    "save_pretrained": _WRITE, "from_pretrained": _READ, "save": _OWN, "load": _OWN,
    "gradient_checkpointing_enable": "model.recompute_blocks = True",
    "merge_and_unload": "ml.merge_lora(model), then ml.remove_lora(model)", "unload": "ml.remove_lora(model)",
    "merge_adapter": "ml.merge_lora(model)", "unmerge_adapter": "ml.unmerge_lora(model)",
    "disable_adapter": "with ml.lora_disabled(model):", "set_adapter": "ml.set_adapter(model, name)",
    "add_adapter": "ml.add_adapter(model, config, name=name)", "load_adapter": "ml.load_adapter(model, path)",
    "delete_adapter": "ml.remove_adapter(model)", "print_trainable_parameters": "print(model)",
    "get_nb_trainable_parameters": "model.count(trainable=True), model.count()", "fit": "ml.train(ml.Run(model, ...))",
    "active_adapter": "ml.add_lora(model, ml.LoRAConfig()): this one carries no adapter",
}  # fmt: skip

SETTING: dict[str, str] = {  # a setting's name elsewhere -> its name here
    "r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "lora_rank": "rank", "use_rslora": "rank_stabilized",
    "vera_dropout": "dropout", "miss_dropout": "dropout", "projection_prng_key": "seed",
    "init_lora_weights": "init", "targets": "target_modules", "modules": "target_modules",
    "num_virtual_tokens": "tokens", "prompt_tuning_init": "init", "prompt_tuning_init_text": "text",
    "encoder_hidden_size": "hidden", "non_linearity": "activation", "bottleneck_size": "bottleneck",
    "n_positions": "block_size", "n_ctx": "block_size", "max_position_embeddings": "block_size",
    "context_length": "block_size", "hidden_size": "n_embd", "d_model": "n_embd", "n_embed": "n_embd",
    "num_hidden_layers": "n_layer", "num_layers": "n_layer", "n_layers": "n_layer", "num_attention_heads": "n_head",
    "num_heads": "n_head", "n_heads": "n_head", "resid_pdrop": "dropout", "vocab": "vocab_size",
    "learning_rate": "lr", "max_steps": "steps", "num_train_epochs": "steps", "epochs": "steps",
    "per_device_train_batch_size": "batch_size", "warmup_steps": "warmup", "max_grad_norm": "max_norm",
    "eval_steps": "evaluate_every", "save_steps": "checkpoint_every", "loraplus_lr_ratio": "lr_ratio",
    "gradient_accumulation_steps": "accumulate", "gradient_checkpointing": "checkpoint_blocks",
}  # fmt: skip


def advice(name: str, table: dict[str, str], known: Iterable[str] = ()) -> str:
    """What to add to an error: "; write ..." for another library's name, "; did you mean ...?" for a slip, or ""."""
    if name.startswith("__"):
        return ""  # Python asks for many of these
    if name in table:
        return f"; write {table[name]}"
    import difflib  # here: only a slip needs it

    close = difflib.get_close_matches(name, [*known], 1)
    return f"; did you mean {close[0]}?" if close else ""


def names_its_settings(config: Any) -> Any:
    """A class decorator: a setting that the dataclass has not is answered with the one it has.

    As `checked` does for a function, it holds the values to the types of the fields: those that they have at the end,
    since a single text, for one, may become a tuple.
    """
    init, name = config.__init__, config.__name__
    known = [field.name for field in dataclasses.fields(config)]
    hints = functools.cache(lambda: typing.get_type_hints(config))

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **settings: Any) -> None:
        for setting, value in settings.items():
            if setting not in known:
                here = SETTING.get(setting)
                fix = f"write {here}=" if here in known else f"there are {', '.join(known)}"
                raise TypeError(f"{name}: got {setting}={shown(value)}, and there is no such setting; {fix}")
        try:
            init(self, *args, **settings)
        except (ValueError, TypeError) as error:
            given = dict(zip(known, args, strict=False)) | settings
            if name in str(error) and "\n" not in str(error):
                raise
            raise misfit(name, hints(), given) or in_its_name(name, error) from None
        if wrong := misfit(name, hints(), vars(self)):
            raise wrong

    config.__init__ = checked
    return config

"""Module: a tree of named parameters. Attributes that are tensors, modules or lists of modules are its branches."""

from collections.abc import Iterator, Mapping
from typing import Any

from ..autograd.backend import Array, array_module, to_numpy
from ..autograd.tensor import Tensor


class Module:
    """Base class of layers and models. Names follow attributes: `blocks.0.attn.q_proj.weight`."""

    optional_parameters: tuple[str, ...] = ()  # names that a state dict may lack: an adapter's, beside its base

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """(name, module) for this module (whose name is the prefix) and everything below it."""
        yield prefix, self
        for name, child in vars(self).items():
            path = f"{prefix}.{name}" if prefix else name
            if isinstance(child, Module):
                yield from child.named_modules(path)
            elif isinstance(child, list):
                for i, item in enumerate(child):
                    if isinstance(item, Module):
                        yield from item.named_modules(f"{path}.{i}")

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) for every parameter, trainable or frozen."""
        for prefix, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Tensor):
                    yield f"{prefix}.{name}" if prefix else name, value

    def parameters(self, trainable: bool = False) -> list[Tensor]:
        """All parameters, or the trainable ones only."""
        return [p for _, p in self.named_parameters() if p.requires_grad or not trainable]

    def count(self, trainable: bool = False) -> int:
        """The exact number of parameters, or of trainable ones."""
        return sum(p.size for p in self.parameters(trainable))

    def get_module(self, name: str) -> Any:
        """The module at a dotted name: model.get_module("blocks.0.attn")."""
        node: Any = self
        for part in name.split(".") if name else []:
            node = node[int(part)] if isinstance(node, list) else getattr(node, part)
        return node

    def set_module(self, name: str, module: "Module") -> None:
        """Put another module at a dotted name."""
        parent, _, last = name.rpartition(".")
        owner = self.get_module(parent)
        if isinstance(owner, list):
            owner[int(last)] = module
        else:
            setattr(owner, last, module)

    def state_dict(self) -> dict[str, Array]:
        """{name: a copy of the parameter}: a snapshot that later training does not change."""
        return {name: p.data.copy() for name, p in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy values into the parameters, keeping their precision. All names and shapes are checked first.

        Raises ValueError that lists names missing, names unexpected and shapes that differ; then nothing has changed.
        """
        own = dict(self.named_parameters())
        optional = {
            f"{prefix}.{name}" if prefix else name
            for prefix, module in self.named_modules()
            for name in module.optional_parameters
        }
        problems = [f"missing {name}" for name in own if name not in state and name not in optional]
        problems += [f"unexpected {name}" for name in state if name not in own]
        problems += [
            f"{name} has shape {tuple(state[name].shape)}, expected {p.shape}"
            for name, p in own.items()
            if name in state and tuple(state[name].shape) != p.shape
        ]
        if problems:
            more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
            raise ValueError(f"load_state_dict: {'; '.join(problems[:5])}{more}")
        for name, p in own.items():
            if name in state:
                value = state[name].data if isinstance(state[name], Tensor) else state[name]
                p.data[...] = array_module(p.data).asarray(value if type(value) is type(p.data) else to_numpy(value))

    def astype(self, dtype: Any) -> "Module":
        """Convert every parameter to another precision, in place; returns the module."""
        for p in self.parameters():
            trainable, p.requires_grad = p.requires_grad, False
            p.data = p.data.astype(dtype)
            p.requires_grad = trainable
        return self

"""Module: a tree of named parameters. Attributes that are tensors, modules or lists of modules are its branches."""

from collections.abc import Iterator, Mapping
from typing import Any

from ..autograd.backend import Array, array_module, new_array, to_numpy
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

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) for every parameter, trainable or frozen."""
        for path, module in self.named_modules(prefix):
            for name, value in vars(module).items():
                if isinstance(value, Tensor):
                    yield f"{path}.{name}" if path else name, value

    def named_buffers(self) -> Iterator[tuple[str, Array]]:
        """(name, array) for everything in `buffers` of this module and those below it."""
        for path, module in self.named_modules():
            for name, array in module.buffers().items():
                yield f"{path}.{name}" if path else name, array

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
        """{name: a copy of the parameter or buffer}: a snapshot that later training does not change."""
        return {name: array.copy() for name, array in self._arrays().items()}

    def _arrays(self) -> dict[str, Array]:
        return {name: p.data for name, p in self.named_parameters()} | dict(self.named_buffers())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy values into parameters and buffers, keeping their precision. All names and shapes are checked first.

        Raises ValueError that lists names missing, names unexpected and shapes that differ; then nothing has changed.
        """
        for path, module in self.named_modules():
            module.check_loadable(path, state)
        own = self._arrays()
        optional = {
            f"{prefix}.{name}" if prefix else name
            for prefix, module in self.named_modules()
            for name in module.optional_parameters
        }
        values = {name: _values(state[name]) for name in own if name in state}
        problems = [f"missing {name}" for name in own if name not in state and name not in optional]
        problems += [f"unexpected {name}" for name in state if name not in own]
        problems += [
            f"{name} has shape {value.shape}, expected {own[name].shape}"
            for name, value in values.items()
            if value.shape != own[name].shape
        ]
        problems += [
            f"{name} has dtype {value.dtype}, expected {wanted}"
            for name, value in values.items()
            if (wanted := _wanted_dtype(own[name], value))
        ]
        if problems:
            more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
            raise ValueError(f"load_state_dict: {'; '.join(problems[:5])}{more}")
        for name, value in values.items():
            data = own[name]
            data[...] = array_module(data).asarray(value if type(value) is type(data) else to_numpy(value))

    def check_loadable(self, path: str, state: Mapping[str, Any]) -> None:
        """Raise ValueError where a state's values cannot be loaded into this module, which is at `path`."""

    def buffers(self) -> dict[str, Array]:
        """{name: array} that belong to this module and are no parameters: a quantised weight's codes and scales."""
        return {}

    def astype(self, dtype: Any) -> "Module":
        """Convert every parameter to another precision, in place; returns the module."""
        for p in self.parameters():
            trainable, p.requires_grad = p.requires_grad, False
            p.data = p.data.astype(dtype, copy=False)
            p.requires_grad = trainable
        return self


def _wanted_dtype(own: Array, value: Array) -> str:
    """What was expected where a value's dtype will not do: real numbers are converted, codes are not."""
    if own.dtype.kind == "f":
        return "" if value.dtype.kind in "fiub" else "real numbers"
    return "" if value.dtype == own.dtype else str(own.dtype)


def _values(value: Any) -> Array:
    return value.data if isinstance(value, Tensor) else new_array(value)

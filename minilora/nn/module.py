"""Module: a tree of named parameters. Attributes that are tensors or modules, or hold some, are its branches."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..autograd.backend import Array, array_module, new_array, to_numpy
from ..autograd.signatures import shown
from ..autograd.tensor import Tensor
from ..autograd.versions import changed
from .habits import MODULE, advice
from .tree import line, summary, tree


class Module:
    """Base class of layers and models. Names follow attributes: `blocks.0.attn.q_proj.weight`.

    Tensors and modules in lists, tuples and dictionaries are branches, too (`blocks.0`, `heads.left`); in a set they
    would have no name, and are refused; in an object of another kind they are not seen. One tensor is one parameter,
    and one module one module, however many places they stand in: they are listed once, by their first name. A state
    dict has an entry for every name, as PyTorch's has.
    """

    optional_parameters: tuple[str, ...] = ()  # names that a state dict may lack: an adapter's, beside its base
    references: tuple[str, ...] = ()  # attributes that hold what belongs to other modules
    dropout: float = 0.0  # acts where a generator is given

    def __call__(self, *args: Any, **options: Any) -> Any:
        """What the module computes: subclasses say it, here or, as in PyTorch, in `forward`."""
        if type(self).forward is Module.forward:
            raise TypeError(f"{type(self).__name__} computes nothing: it has no __call__, and no forward")
        return self.forward(*args, **options)

    def forward(self, *args: Any, **options: Any) -> Any:
        """model.forward(x) is model(x)."""
        return self(*args, **options)

    def named_modules(self, prefix: str = "", remove_duplicate: bool = True) -> Iterator[tuple[str, "Module"]]:
        """(name, module) for this module (whose name is the prefix) and everything below it.

        A module in several places comes once, or with remove_duplicate=False at each; a way back up is no place.
        """
        seen: set[int] = set()
        todo: list[tuple[str, Module, frozenset]] = [(prefix, self, frozenset())]
        while todo:
            path, module, above = todo.pop()
            if id(module) in (seen if remove_duplicate else above):
                continue
            seen.add(id(module))
            yield path, module
            inside = above if remove_duplicate else above | {id(module)}
            below = [(name, child, inside) for name, child in module._branches(path) if isinstance(child, Module)]
            todo += reversed(below)

    def named_parameters(self, prefix: str = "", remove_duplicate: bool = True) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) for every parameter, trainable or frozen, by its first name, or by each name that it has."""
        seen: set[int] = set()
        for path, module in self.named_modules(prefix, remove_duplicate):
            for name, value in module._branches(path):
                if isinstance(value, Tensor) and not (remove_duplicate and id(value) in seen):
                    seen.add(id(value))
                    yield name, value

    def _branches(self, path: str) -> Iterator[tuple[str, Any]]:
        """(name, tensor or module) of every branch of this module, which is at `path`."""
        start = f"{path}." if path else ""
        for name, value in vars(self).items():
            if isinstance(value, BRANCHES):  # most are, or are plain values: `_within` takes longer to say so
                if name not in self.references:
                    yield start + name, value
            elif isinstance(value, CONTAINERS) and name not in self.references:
                yield from _within(start + name, value)

    def named_buffers(self, remove_duplicate: bool = True) -> Iterator[tuple[str, Array]]:
        """(name, array) for everything in `buffers` of this module and those below it."""
        seen: dict[int, Array] = {}  # the arrays too, so that none of them is let go and its id given to another
        for path, module in self.named_modules(remove_duplicate=remove_duplicate):
            for name, array in module.buffers().items():
                if not (remove_duplicate and id(array) in seen):
                    seen[id(array)] = array
                    yield f"{path}.{name}" if path else name, array

    def parameters(self, trainable: bool = False) -> list[Tensor]:
        """All parameters, or the trainable ones only."""
        return [p for _, p in self.named_parameters() if p.requires_grad or not trainable]

    def count(self, trainable: bool = False) -> int:
        """The exact number of parameters, those that stand as codes in buffers included, or of trainable ones."""
        packed = 0 if trainable else sum(math.prod(s) for _, m in self.named_modules() for s in m.packed().values())
        return sum(p.size for p in self.parameters(trainable)) + packed

    def drops_out(self) -> bool:
        """Whether this module or one below it has dropout. A training step asks: a walk without names or generators."""
        seen: set[int] = set()
        todo: list[Any] = [self]
        while todo:
            found = todo.pop()
            if isinstance(found, Module):
                if id(found) not in seen:
                    if found.dropout:
                        return True
                    seen.add(id(found))
                    own = vars(found)
                    todo += (
                        [own[name] for name in own if name not in found.references]
                        if found.references
                        else own.values()
                    )
            elif isinstance(found, list | tuple):
                todo += found
            elif isinstance(found, dict):
                todo += found.values()
        return False

    def packed(self) -> dict[str, tuple[int, ...]]:
        """{name: shape} of this module's own parameters that its buffers stand for: a quantised weight."""
        return {}

    def get_module(self, name: str) -> Any:
        """The module at a dotted name: model.get_module("blocks.0.attn"). Raises AttributeError where there is none."""
        if not isinstance(name, str):
            raise TypeError(f"get_module: name = {shown(name)}, expected a text such as 'blocks.0'")
        node: Any = self
        for place, part in enumerate(name.split(".") if name else []):
            try:
                node = node[_key(node, part)] if isinstance(node, list | tuple | dict) else getattr(node, part)
            except (AttributeError, LookupError, ValueError):
                above = ".".join(name.split(".")[:place]) or f"this {type(self).__name__}"
                raise AttributeError(f"get_module: got {name!r}, but {above} has no {part!r}") from None
        return node

    def set_module(self, name: str, module: "Module") -> None:
        """Put another module at a dotted name."""
        parent, _, last = name.rpartition(".")
        owner = self.get_module(parent)
        if isinstance(owner, list | dict):
            owner[_key(owner, last)] = module
        elif isinstance(owner, tuple):  # cannot be written to: another one takes its place
            at = _key(owner, last)
            self.set_module(parent, (*owner[:at], module, *owner[at + 1 :]))  # type: ignore[arg-type]
        else:
            setattr(owner, last, module)

    def state_dict(self) -> dict[str, Array]:
        """{name: a copy of the parameter or buffer}: a snapshot that later training does not change.

        One tensor under several names is one array under all of them.
        """
        copies: dict[int, Array] = {}
        own = self._arrays()
        return {name: copies.setdefault(id(array), array.copy()) for name, array in own.items()}

    def _arrays(self) -> dict[str, Array]:
        """{name: the very array}, under every name that it has."""
        parameters = {name: p.data for name, p in self.named_parameters(remove_duplicate=False)}
        return parameters | dict(self.named_buffers(remove_duplicate=False))

    def load_state_dict(self, state: Mapping[str, Any], fresh: bool = False) -> None:
        """Copy values into parameters and buffers, keeping their precision. Everything is checked first.

        Of a tensor with several names one is enough. Raises ValueError that lists names missing, names unexpected,
        shapes that differ, values that are not finite or too large for the precision, and names of one tensor whose
        values disagree; TypeError for what is no mapping. Then, and after an interrupt, nothing has changed.
        fresh: nobody else has this model yet, and no copy of what it holds is made for that case.
        """
        if not isinstance(fresh, bool):
            raise TypeError(f"load_state_dict: fresh = {shown(fresh)}, expected True or False")
        if not isinstance(state, Mapping):
            fix = "{name: array}, as state_dict() gives; a model's file is read by ml.load_model(path)"
            raise TypeError(f"load_state_dict: got {shown(state)}, expected {fix}")
        for path, module in self.named_modules():
            module.check_loadable(path, state)
        own = self._arrays()
        names: dict[int, list[str]] = {}  # of each array
        for name, array in own.items():
            names.setdefault(id(array), []).append(name)
        optional = {
            f"{prefix}.{name}" if prefix else name
            for prefix, module in self.named_modules(remove_duplicate=False)
            for name in module.optional_parameters
        }
        problems = [
            f"missing {alike[0]}"
            for alike in names.values()
            if not any(name in state or name in optional for name in alike)
        ]
        problems += [f"unexpected {name}" for name in state if name not in own]
        values: dict[str, Array] = {}  # under the first of the names that came
        for alike in names.values():
            for name in alike:
                first = next((one for one in alike if one in values), name)
                try:
                    if name in state:
                        value = _fitting(state[name], own[name], fresh)
                        if values.setdefault(first, value) is not value and not bool((values[first] == value).all()):
                            problems.append(f"{name} differs from {first}, and they are one tensor here")
                except ValueError as error:
                    problems.append(f"{name} {error}")
        if problems:
            more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
            raise ValueError(f"load_state_dict: {'; '.join(problems[:5])}{more}")
        self._write(own, values, {} if fresh else {name: own[name].copy() for name in values})

    def _write(self, own: dict[str, Array], values: dict[str, Array], before: dict[str, Array]) -> None:
        """Copy all values into the arrays of those names; where something comes in between, those of before."""
        try:
            for name, value in values.items():
                own[name][...] = value
            for name in values:
                changed(own[name])
        except BaseException:  # Ctrl-C among them
            for name, value in before.items():
                own[name][...] = value
            raise

    def check_loadable(self, path: str, state: Mapping[str, Any]) -> None:
        """Raise ValueError where a state's values cannot be loaded into this module, which is at `path`."""

    def buffers(self) -> dict[str, Array]:
        """{name: array} that belong to this module and are no parameters: a quantised weight's codes and scales."""
        return {}

    def astype(self, dtype: Any) -> "Module":
        """Convert every parameter to another precision, in place; returns the module.

        Raises TypeError for a dtype that is no precision, and ValueError for a number that is not finite there: which,
        and where. Then, and after an interrupt, nothing has changed.
        """
        dtype = precision(dtype, "astype")
        names = {id(p): name for name, p in self.named_parameters()}
        after = []
        for p, wanted in self._precisions(dtype):
            if p.dtype.kind in "fc" and p.dtype != wanted:
                try:
                    after.append((p, in_precision(p.data, wanted)))
                except ValueError as error:
                    raise ValueError(f"astype: {names.get(id(p), 'an adapter that is aside')}: {error}") from None
        before = [(p, p.data) for p, _ in after]
        try:
            for p, data in after:
                p.data = data
                changed(data)
        except BaseException:  # Ctrl-C among them
            for p, data in before:
                p.data = data
            raise
        return self

    def _precisions(self, dtype: Any) -> Iterator[tuple[Tensor, Any]]:
        """(parameter, the precision it gets): an adapter, in use or aside, has a word in it (adapters/state.py)."""
        carried = vars(self).get("adapters")
        return ((p, dtype) for p in self.parameters()) if carried is None else carried.precisions(self, dtype)

    @property
    def active_adapter(self) -> Any:
        """The name of the adapter in use, a tuple of several, or None; without adapters there is no such attribute."""
        if "adapters" not in vars(self):
            raise AttributeError(f"this {type(self).__name__} carries no adapter; add_lora(model, config)")
        names = vars(self)["adapters"].active
        return names[0] if len(names) == 1 else names or None

    def to(self, *places: Any, device: Any = None, dtype: Any = None) -> "Module":
        """model.to("float64") is model.astype("float64"); model.to("cpu") is for arrays that are there."""
        for place in (*places, *(given for given in (device, dtype) if given is not None)):
            if not isinstance(place, str) or not place.startswith(("cpu", "cuda", "mps")):
                self.astype(place)
            elif place != "cpu" or any(array_module(array) is not np for array in self._arrays().values()):
                raise ValueError(f"to: got {place!r}; write {MODULE['cuda']}")
        return self

    def train(self, mode: bool = True) -> "Module":
        """The model itself. Raises ValueError where it has dropout, which a generator switches on here, not a mode."""
        if mode and self.drops_out():
            raise ValueError(f"train: this model has dropout; write {MODULE['training']}")
        return self

    def eval(self) -> "Module":
        """The model itself: without a generator every pass is deterministic."""
        return self

    def zero_grad(self) -> None:
        """Forget the gradients that `backward()` has accumulated."""
        for p in self.parameters():
            p.grad = None

    def extra_repr(self) -> str:
        """What else there is to know about this module, for `print(model)`."""
        return ""

    def __str__(self) -> str:
        return tree(self)

    def __repr__(self) -> str:  # of one line, for errors
        inside = [module for _, module in self.named_modules()][1:]
        return f"{type(self).__name__}({summary(self)})" if inside else line(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # what a notebook shows
        printer.text(str(self))

    def __getattr__(self, name: str) -> Any:  # asked only for what is not there
        what = f"{type(self).__name__!r} object has no attribute {name!r}"
        raise AttributeError(what + advice(name, MODULE), name=name, obj=self)

    def first_not_finite(self) -> str:
        """Where the first number stands that is none: "blocks.0.ln_1.weight: entry (3,) is nan"; "" without one."""
        for name, array in self._arrays().items():
            try:
                in_precision(array, array.dtype)
            except ValueError as error:
                return f"{name}: {error}"
        return ""


BRANCHES = (Module, Tensor)
CONTAINERS = (list, tuple, dict, set, frozenset)  # what may have branches in it


def _within(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """(name, tensor or module) of an attribute's value: itself, or those in it, in the order in which they stand."""
    if isinstance(value, Module | Tensor):
        yield path, value
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _within(f"{path}.{i}", item)
    elif isinstance(value, dict):
        for key, item in value.items():
            for found in _within(f"{path}.{key}", item):
                if "." in str(key):
                    raise ValueError(f"{path}: the key {key!r} leads to parameters, and a name has no dot in it")
                yield found
    elif isinstance(value, set | frozenset) and any(isinstance(item, Module | Tensor) for item in value):
        raise ValueError(f"{path} is a set, whose members have no names; put modules and tensors into a list")


def _key(owner: Any, part: str) -> Any:
    """The index or key that a part of a dotted name stands for."""
    if not isinstance(owner, dict):
        return int(part)
    return part if part in owner else next((key for key in owner if str(key) == part), part)


def _fitting(value: Any, own: Array, fresh: bool) -> Array:
    """A value as it can be copied into `own`. Raises ValueError that says why there is none."""
    if isinstance(value, np.ma.MaskedArray):
        raise ValueError("is a masked array, whose mask would be lost; expected a plain one: x.filled(0)")
    try:
        value = value.data if isinstance(value, Tensor) else new_array(value)
    except (ValueError, TypeError, RuntimeError) as error:  # rows of unequal lengths; another library's tape
        raise ValueError(f"is no array: {error}") from None
    if value.shape != own.shape:
        raise ValueError(f"has shape {value.shape}, expected {own.shape}")
    if wanted := _wanted_dtype(own, value):
        raise ValueError(f"has dtype {value.dtype}, expected {wanted}")
    value = array_module(own).asarray(value if type(value) is type(own) else to_numpy(value))
    value = in_precision(value, own.dtype)
    return value if fresh else value.copy()  # it may be the memory of another parameter here


def _wanted_dtype(own: Array, value: Array) -> str:
    """What was expected where a value's dtype will not do: real numbers are converted, codes are not."""
    if own.dtype.kind == "f":
        return "" if value.dtype.kind in "fiub" else "real numbers"
    return "" if value.dtype == own.dtype else str(own.dtype)


def precision(dtype: Any, caller: str) -> np.dtype:
    """A dtype of floating-point numbers. Raises TypeError for another one, and for what is none."""
    try:
        found = np.dtype(dtype)
    except (TypeError, ValueError, LookupError):
        found = None
    if found is None or dtype is None or found.kind not in "fc":
        raise TypeError(f"{caller}: dtype = {shown(dtype)}, expected 'float16', 'float32' or 'float64'")
    return found


def in_precision(array: Array, dtype: Any) -> Array:
    """The same numbers in another precision. Raises ValueError that names the first that is not finite there."""
    xp = array_module(array)
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array.astype(dtype, copy=False)
    wrong = ~xp.isfinite(converted)
    if bool(wrong.any()):
        place = tuple(int(i) for i in xp.unravel_index(wrong.argmax(), wrong.shape))
        value = array[place].item()
        why = f", too large for {converted.dtype}" if np.isfinite(value) else ""
        raise ValueError(f"entry {place} is {value}{why}")
    return converted

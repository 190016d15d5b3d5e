"""Which modules are meant: names, shell patterns, regular expressions, exclusions, layers, and settings a pattern.

A tuple holds names or shell patterns, each of which names a module in full or by its last parts: "q_proj" is every
q_proj, "blocks.0.*" and "*.mlp.*" are whole names, "*" is everything. A single string is the same, unless it holds one
of \\ ^ $ + | ( ) { } or starts with ".*": then it is a regular expression that must match a whole name, as in PEFT.
"all-linear" is "*", and both mean every linear layer but an output head.
"""

import fnmatch
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..nn.checks import is_real, shown

REGULAR = re.compile(r"[\\^$+|(){}]|^\.\*")  # what a regular expression has and a shell pattern has not

OUTPUTS = (  # what output layers are called, which "*" does not mean
    "head", "classifier", "classifier.dense", "classifier.out_proj", "score",
)  # fmt: skip

Patterns = str | Sequence[str]


def patterns(value: Any, what: str) -> Patterns:
    """A regular expression as it is, and anything else as a tuple. Raises ValueError for what is neither."""
    if isinstance(value, str) and value.lower() == "all-linear":  # PEFT's word for it
        return ("*",)
    if isinstance(value, str) and REGULAR.search(value):
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{what} = {shown(value)} is no regular expression: {error}") from None
        return value
    found = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Sequence | set) else (value,)
    if not all(isinstance(one, str) and one for one in found):
        raise ValueError(f"{what} = {shown(value)}, expected names or patterns, such as ('q_proj', 'v_proj')")
    return found


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern names this module in full or by its last parts."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"*.{pattern}")


def match_targets(
    wanted: Patterns, names: list[str], what: str = "target_modules", by_name: Collection[str] = ()
) -> list[str]:
    """The names that the patterns, or the regular expression, mean. Raises ValueError for one that means none.

    by_name: names that are meant only where their last part stands in the pattern: an embedding, an output head.
    """
    regular = isinstance(wanted, str) and bool(REGULAR.search(wanted))
    means = (lambda pattern, name: bool(re.fullmatch(pattern, name))) if regular else matches
    open_to = lambda pattern, name: name not in by_name or name.rpartition(".")[2] in pattern
    each = (wanted,) if isinstance(wanted, str) else wanted
    hits = {pattern: {name for name in names if means(pattern, name) and open_to(pattern, name)} for pattern in each}
    found = set().union(*hits.values())
    if unmet := [pattern for pattern, those in hits.items() if not those]:
        kinds = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in names))
        raise ValueError(f"{what}: {unmet[0]!r} matches nothing; there are {kinds} (as in {names[0]})")
    return [name for name in names if name in found]


def in_layers(layers: Sequence[int], names: list[str], what: str) -> list[str]:
    """The names whose first number is one of `layers`. Raises ValueError for a layer that no name has."""
    numbers = {name: re.search(r"\.(\d+)\.", f".{name}.") for name in names}
    layer = {name: int(found[1]) for name, found in numbers.items() if found}
    if absent := sorted(set(layers) - set(layer.values())):
        there = ", ".join(map(str, sorted(set(layer.values())))) or "none with a number"
        raise ValueError(f"{what}: no target is in layer {absent[0]}; the targets' layers are {there}")
    return [name for name in names if layer.get(name) in layers]


def by_pattern(settings: Mapping[str, Any], names: list[str], what: str) -> dict[str, Any]:
    """{name: the setting of the first pattern that means it}. Raises ValueError for a pattern that means none."""
    for pattern in settings:
        match_targets((pattern,), names, what)
    means = {name: [pattern for pattern in settings if matches(pattern, name)] for name in names}
    return {name: settings[hits[0]] for name, hits in means.items() if hits}


def read_targets(config: Any) -> None:
    """Hold as patterns what a configuration targets, leaves out and trains in full beside; and look at its dropout.

    Raises ValueError for what is no pattern, for no target, and for a dropout that is no share.
    """
    name = type(config).__name__
    for what in ("target_modules", "exclude_modules", "modules_to_save"):
        object.__setattr__(config, what, patterns(getattr(config, what), f"{name}: {what}"))
    if not config.target_modules:
        raise ValueError(f"{name}: target_modules is empty; name at least one, such as 'q_proj'")
    p = getattr(config, "dropout", 0.0)
    if not is_real(p) or not 0 <= p < 1:
        raise ValueError(f"{name}: dropout = {shown(p)}, expected 0 <= dropout < 1")

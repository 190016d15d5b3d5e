"""What a model carries, against a dictionary: every sequence of operations, and interrupts in the middle of each.

The reference is a dictionary {name: arrays}, base weights, and a transformer in plain NumPy that computes with
W + sum of Delta W. It knows nothing of modules that stand in others' places.
"""

import contextlib
import math
import pathlib
import tempfile

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import minilora as ml
from minilora.adapters.files import adapters_state, put_adapters
from minilora.adapters.quantization import quantize
from minilora.adapters.state import brought, check
from minilora.nn.layers import Linear

CONFIG = ml.GPTConfig(vocab_size=7, block_size=5, n_layer=1, n_head=2, n_embd=8)
TOKENS = np.random.default_rng(0).integers(0, 7, (2, 4))
TARGETS = np.random.default_rng(1).integers(0, 7, (2, 4))
NAMES = ("a", "b", "c")
KINDS = {
    "lora": ml.LoRAConfig(rank=2, alpha=3),
    "rs": ml.LoRAConfig(rank=1, alpha=2, target_modules="*", rank_stabilized=True),
    "pissa": ml.LoRAConfig(rank=1, alpha=2, target_modules=("q_proj", "up_proj"), init="pissa"),
    "dora": ml.DoRAConfig(rank=1, alpha=2, target_modules=r".*\.(q|k)_proj"),
    "rich": ml.LoRAConfig(
        rank=1, target_modules="*", exclude_modules="*.mlp.*", rank_pattern={"v_proj": 2}, alpha_pattern={"q_proj": 1},
        bias="lora_only", modules_to_save="ln_f",
    ),
    "bitfit": ml.BitFitConfig(),
    "full": ml.FullConfig(),
    "pfeiffer": ml.PfeifferConfig(bottleneck=2),
    "pair": [ml.LoRAConfig(rank=1, target_modules="v_proj"), ml.PfeifferConfig(bottleneck=2)],
    "too large": ml.LoRAConfig(rank=99),
}  # fmt: skip
ON_CODES = ("lora", "rs", "rich", "bitfit", "pfeiffer", "pair")  # what stands on quantised weights
MERGEABLE = ("lora", "rs", "pissa", "dora", "rich", "bitfit", "full", "combined")
ADDED_UP = ("lora", "rs", "pissa", "dora", "combined")  # what may share a place with its like
PURE = ("lora", "rs", "pissa", "combined")  # s B A and nothing else


# The reference


def layer_norm(x, w, b):
    return w * (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) + b


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def attention(q, k, v, heads):
    q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3) for x in (q, k, v))
    scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(q.shape[-1])
    scores = np.where(np.tri(q.shape[2], dtype=bool), scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    y = (p / p.sum(-1, keepdims=True)) @ v
    return y.transpose(0, 2, 1, 3).reshape(y.shape[0], y.shape[2], -1)


def logits(w, bottlenecks=()):
    """The transformer of these weights, with the adapters behind its MLP."""
    linear = lambda x, path: x @ w[f"{path}.weight"].T + w[f"{path}.bias"]
    norm = lambda x, path: layer_norm(x, w[f"{path}.weight"], w[f"{path}.bias"])
    x = w["wte.weight"][TOKENS] + w["wpe.weight"][: TOKENS.shape[1]]
    h = norm(x, "blocks.0.ln_1")
    x = x + linear(attention(*(linear(h, f"blocks.0.attn.{k}_proj") for k in "qkv"), 2), "blocks.0.attn.o_proj")
    y = linear(gelu(linear(norm(x, "blocks.0.ln_2"), "blocks.0.mlp.up_proj")), "blocks.0.mlp.down_proj")
    for b in bottlenecks:
        y = y + gelu(y @ b["down.weight"].T + b["down.bias"]) @ b["up.weight"].T + b["up.bias"]
    return norm(x + y, "ln_f") @ w["wte.weight"].T


def deltas(adapter, base):
    """{name of a base parameter: what the adapter adds to it}, from its arrays alone."""
    arrays, found = {k: v.astype(float) for k, v in adapter["arrays"].items()}, {}
    for name, A in arrays.items():
        path, _, part = name.rpartition(".")
        if part == "lora_A":
            r, B = len(A), arrays[f"{path}.lora_B"]
            alpha, root = adapter["alphas"].get(path.rpartition(".")[2], adapter["alpha"]), adapter["root"]
            s = (alpha or r) / (math.sqrt(r) if root else r)
            delta = s * B @ A
            if f"{path}.lora_A0" in arrays:
                delta = delta - s * arrays[f"{path}.lora_B0"] @ arrays[f"{path}.lora_A0"]
            if f"{path}.magnitude" in arrays:
                V = base[f"{path}.weight"] + delta
                delta = (arrays[f"{path}.magnitude"] / np.linalg.norm(V, axis=1))[:, None] * V - base[f"{path}.weight"]
            found[f"{path}.weight"] = delta
        elif name in base:
            found[name] = A - base[name]
    return found


def bottleneck(adapter):
    place = "blocks.0.mlp.adapter."
    found = {k.removeprefix(place): v.astype(float) for k, v in adapter["arrays"].items() if k.startswith(place)}
    return [found] if found else []


def overlapping(one, two):
    return bool(one["paths"] & two["paths"])


class Machine(RuleBasedStateMachine):
    """The model under test and the dictionary, side by side."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.files = {}  # name of a file -> the adapter in it
        self.model = ml.GPT(CONFIG).astype("float64")
        rng = np.random.default_rng(3)
        for p in self.model.parameters():
            p.data[...] = rng.normal(0, 0.4, p.shape)
        self.base = {name: p.data.copy() for name, p in self.model.named_parameters()}
        self.linears = [path for path, m in self.model.named_modules() if isinstance(m, Linear)]
        self.codes = {}  # path of a quantised layer -> None
        self.frozen = False  # by quantisation, for good
        self.adapters, self.active, self.merged, self.dtype = {}, (), False, "float64"
        self.blocks = []  # open blocks, the last one innermost: ("disabled" or "rows", context, what was active, names)
        self.read_by = {}  # the adapters as they were when a rows_use block was entered
        self.bar = 1e-10
        self.seed = 0

    def teardown(self):
        for _, context, *_ in reversed(self.blocks):
            context.__exit__(None, None, None)
        self.folder.cleanup()

    # what the dictionary says

    @property
    def disabled(self):
        return any(kind == "disabled" for kind, *_ in self.blocks)

    @property
    def rows(self):
        """The names of each row, where an open block still says so."""
        return self.active[0] if self.active and isinstance(self.active[0], tuple) else None

    def weights(self, names, adapters=None):
        adapters = self.adapters if adapters is None else adapters
        w = {name: value.astype(float) for name, value in self.base.items()}
        for name in names:
            for key, delta in deltas(adapters[name], {k: v.astype(float) for k, v in self.base.items()}).items():
                w[key] = w[key] + delta
        return w

    def output(self):
        if self.disabled or not self.active:
            return logits(self.weights(()))
        if self.rows is not None:
            each = [self.weights(() if name is None else (name,), self.read_by[self.rows]) for name in self.rows]
            return np.stack([logits(w)[i] for i, w in enumerate(each)])
        return logits(self.weights(self.active), [b for n in self.active for b in bottleneck(self.adapters[n])])

    # how operations are tried

    def snapshot(self):
        m = self.model
        held = [(name, p, p.data, p.data.copy(), p.requires_grad) for name, p in m.named_parameters()]
        names = {n: {k: p.data.copy() for k, p in brought(m, a).items()} for n, a in getattr(m, "adapters", {}).items()}
        return held, names, getattr(m, "active_adapter", None), sorted(vars(m)), m(TOKENS).data

    def attempt(self, works, operation):
        """Whether the operation worked, which it must exactly where the dictionary says so; else nothing changed."""
        if works:
            operation()
            return True
        before = self.snapshot()
        with pytest.raises((ValueError, TypeError)) as error:
            operation()
        assert "\n" not in str(error.value)
        after = self.snapshot()
        one, two = ([(n, id(p), id(x), trained) for n, p, x, _, trained in held] for held in (before[0], after[0]))
        assert one == two
        for one, two in zip(before[0], after[0], strict=True):
            np.testing.assert_array_equal(one[3], two[3])
        np.testing.assert_equal(after[1:], before[1:])
        return False

    def read(self, name, kind):
        """Enter an adapter of the model into the dictionary."""
        adapter = self.model.adapters[name]
        config = KINDS.get(kind)
        config = config[0] if isinstance(config, list) else config
        self.adapters[name] = {
            "kind": kind,
            "arrays": {key: p.data.copy() for key, p in brought(self.model, adapter).items()},
            "paths": set(adapter.modules),
            "alpha": getattr(config, "alpha", None),
            "alphas": getattr(config, "alpha_pattern", {}),
            "root": getattr(config, "rank_stabilized", False),
        }

    def merge_into_base(self):
        """The weights keep the update, as they do when what is merged is taken out."""
        self.base = {k: v.astype(self.dtype) for k, v in self.weights(self.active).items()}
        changed = {key for name in self.active for key in deltas(self.adapters[name], self.base)}
        self.codes = {p: v for p, v in self.codes.items() if f"{p}.weight" not in changed}

    def forget(self):
        self.adapters, self.active, self.merged = {}, (), False

    # operations

    @rule(name=st.sampled_from(NAMES), kind=st.sampled_from(sorted(KINDS)))
    def add(self, name, kind):
        works = name not in self.adapters and not self.merged and not self.disabled and kind != "too large"
        works = works and not (self.codes and kind not in ON_CODES)
        self.seed += 1
        if self.attempt(works, lambda: ml.add_adapter(self.model, KINDS[kind], rng=self.seed, name=name)):
            self.read(name, kind)
            self.active = (name,)

    @rule(names=st.lists(st.sampled_from((*NAMES, "combined", "nobody")), max_size=3), alone=st.booleans())
    def switch(self, names, alone):
        if alone:
            name = names[0] if names else None
            names, argument = ([] if name is None else [name]), name
            works = name is None or name in self.adapters
        else:
            argument = names
            works = 0 < len(names) == len(set(names)) and all(name in self.adapters for name in names)
            for i, one in enumerate(names if works else ()):
                for two in names[:i]:
                    kinds = {self.adapters[one]["kind"], self.adapters[two]["kind"]}
                    if overlapping(self.adapters[one], self.adapters[two]) and not kinds <= set(ADDED_UP):
                        works = False
        if works and self.adapters:
            works = not self.merged and not self.disabled
        if self.attempt(works, lambda: ml.set_adapter(self.model, argument)) and self.adapters:
            self.active = tuple(names)

    @rule()
    def merge(self):
        works = bool(self.active) and not self.rows and not self.disabled and not self.merged
        works = works and all(self.adapters[n]["kind"] in MERGEABLE for n in self.active)
        if self.attempt(works, lambda: ml.merge_adapter(self.model)):
            self.merged = True

    @rule()
    def unmerge(self):
        if self.attempt(self.merged and not self.disabled, lambda: ml.unmerge_adapter(self.model)):
            self.merged = False

    @rule()
    def disable(self):
        context = ml.adapter_disabled(self.model)
        if self.attempt(bool(self.active), context.__enter__):
            self.blocks.append(("disabled", context, None, self.model.adapters))

    @rule(names=st.lists(st.sampled_from((*NAMES, None)), min_size=2, max_size=2))
    def rows_use(self, names):
        works = bool(self.adapters) and not self.merged and not self.disabled
        works = works and all(n is None or (n in self.adapters and self.adapters[n]["kind"] in PURE) for n in names)
        open_rows = [block[2][0] for block in self.blocks if block[0] == "rows" and self.alive(block)]
        works = works and tuple(names) not in open_rows
        context = ml.rows_use(self.model, names)
        if self.attempt(works, context.__enter__):
            self.blocks.append(("rows", context, (tuple(names), self.active), self.model.adapters))
            self.read_by[tuple(names)] = {n: dict(self.adapters[n]) for n in names if n is not None}
            self.active = (tuple(names),)

    def alive(self, block):
        return getattr(self.model, "adapters", None) is block[3]

    @precondition(lambda self: self.blocks)
    @rule(error=st.booleans())
    def leave(self, error):
        """A block ends, as it does after an exception, too."""
        block = self.blocks.pop()
        kind, context, what, _ = block
        with contextlib.suppress(KeyError):
            context.__exit__(*((KeyError, KeyError("inside"), None) if error else (None, None, None)))
        if kind == "rows" and self.alive(block):
            self.merged = False
            there = lambda name: isinstance(name, tuple) or name in self.adapters
            self.active = tuple(name for name in what[1] if there(name))

    @rule(name=st.sampled_from((*NAMES, "combined", "nobody")))
    def remove(self, name):
        works = name in self.adapters and not self.disabled
        last = works and len(self.model.adapters) == 1
        works = works and (last or not (self.merged and name in self.active))
        if self.attempt(works, lambda: ml.remove_adapter(self.model, name)):
            if last:
                self.remove_the_rest()
            else:
                self.adapters.pop(name)
                self.active = tuple(one for one in self.active if one != name)

    def remove_the_rest(self):
        if self.merged:
            self.merge_into_base()
            for name, p in self.model.named_parameters():  # the last bit is the model's, since its file knows it
                np.testing.assert_allclose(p.data, self.base[name], rtol=self.bar, atol=self.bar, err_msg=name)
                self.base[name] = p.data.copy()
        self.forget()

    @rule()
    def remove_all(self):
        works = bool(self.adapters) and not self.disabled
        if self.attempt(works, lambda: ml.remove_adapter(self.model)):
            self.remove_the_rest()
            assert not hasattr(self.model, "adapters")
            assert all(p.requires_grad != self.frozen for p in self.model.parameters())

    @rule(dtype=st.sampled_from(("float32", "float64")))
    def astype(self, dtype):
        self.model.astype(dtype)
        self.dtype = dtype
        self.base = {name: value.astype(dtype) for name, value in self.base.items()}
        for adapter in self.adapters.values():
            adapter["arrays"] = {name: value.astype(dtype) for name, value in adapter["arrays"].items()}
        self.bar = 2e-4 if dtype == "float32" else self.bar

    @rule(kind=st.sampled_from(("nf4", "int8")))
    def quantise(self, kind):
        works = not self.adapters and len(self.codes) < len(self.linears)
        if self.attempt(works, lambda: ml.quantize_model(self.model, kind, block=16)):
            for path in [path for path in self.linears if path not in self.codes]:
                self.quantise_again(path, kind)
            self.frozen = True

    def quantise_again(self, path, kind):
        self.base[f"{path}.weight"] = quantize(self.base[f"{path}.weight"], kind, 16, True).dequantize(self.dtype)
        self.codes[path] = kind

    @rule()
    def requantise(self):
        works = bool(self.active) and not self.rows and not self.disabled
        works = works and all(self.adapters[n]["kind"] in MERGEABLE for n in self.active)
        if not works or not self.codes:  # on floats it merges and takes out
            return
        if self.attempt(works, lambda: ml.requantize(self.model)):
            codes = dict(self.codes)
            self.merge_into_base()
            self.forget()
            for path in codes.keys() - self.codes.keys():
                self.quantise_again(path, codes[path])
            # where the update ends near the middle between two levels, rounding decides: take the model's word, near it
            for path in codes:
                ours = self.model.get_module(path).weight.data
                gap = abs(self.base[f"{path}.weight"]).max() * 0.3
                assert np.abs(ours - self.base[f"{path}.weight"]).max() <= gap
                assert (np.abs(ours - self.base[f"{path}.weight"]) > 1e-3 * gap).mean() < 0.05
                self.base[f"{path}.weight"] = ours.astype(self.dtype)

    @rule(weights=st.dictionaries(st.sampled_from(NAMES), st.sampled_from((-1.0, 0.5, 2.0)), min_size=1, max_size=2))
    def combine(self, weights):
        works = all(n in self.adapters and self.adapters[n]["kind"] in PURE for n in weights)
        works = works and "combined" not in self.adapters and not self.merged and not self.disabled
        if works:
            first, *others = (self.adapters[n]["paths"] for n in weights)
            works = all(first == other for other in others)
        expected = [deltas(self.adapters[n], self.base) for n in weights] if works else []
        if self.attempt(works, lambda: ml.combine_adapters(self.model, weights)):
            self.read("combined", "combined")
            self.active = ("combined",)
            for key, delta in deltas(self.adapters["combined"], self.base).items():
                total = sum(w * each[key] for w, each in zip(weights.values(), expected, strict=True))
                np.testing.assert_allclose(delta, total, rtol=self.bar, atol=self.bar)

    @precondition(lambda self: self.active and not self.rows and not self.merged and not self.disabled)
    @rule()
    def train(self):
        parameters = self.model.parameters(trainable=True)
        ml.SGD(parameters, lr=0.05).step(ml.grad(self.model.loss(TOKENS, TARGETS), parameters))
        for name in self.active:
            self.read(name, self.adapters[name]["kind"])

    @rule(name=st.sampled_from((None, *NAMES)))
    def save(self, name):
        works = len(self.active) == 1 and not self.rows if name is None else name in self.adapters
        path = pathlib.Path(self.folder.name) / f"{len(self.files)}.npz"
        if self.attempt(works, lambda: ml.save_adapter(self.model, path, name)):
            adapter = self.adapters[self.active[0] if name is None else name]
            self.files[path] = {**adapter, "arrays": dict(adapter["arrays"]), "base": dict(self.base)}
        else:
            assert not path.exists()

    @precondition(lambda self: self.files)
    @rule(data=st.data(), name=st.sampled_from(NAMES))
    def load(self, data, name):
        path = data.draw(st.sampled_from(sorted(self.files)))
        saved = self.files[path]
        same = all(saved["base"][k].astype("f4").tobytes() == v.astype("f4").tobytes() for k, v in self.base.items())
        works = same and not self.merged and not self.disabled
        if self.attempt(works, lambda: ml.load_adapter(self.model, path, name)):
            arrays = saved["arrays"]
            self.read(name, saved["kind"])
            assert self.adapters[name]["arrays"].keys() == arrays.keys()
            for key, value in self.adapters[name]["arrays"].items():
                np.testing.assert_array_equal(value, arrays[key].astype(self.dtype))
            self.active = (name,)

    @precondition(lambda self: not self.codes and not any(kind == "disabled" for kind, *_ in self.blocks))
    @rule()
    def all_in_a_file(self):
        """What a checkpoint holds, on a new model."""
        works = bool(self.adapters) and not self.merged and not self.rows and not any(map(self.alive, self.blocks))
        if not works:
            return
        header, arrays = adapters_state(self.model)
        model = ml.GPT(CONFIG).astype(self.dtype)
        model.load_state_dict(self.base)
        put_adapters(model, header, {name: value.copy() for name, value in arrays.items()})
        self.model = model

    # what holds after each

    @invariant()
    def outputs_are_the_dictionarys(self):
        check(self.model)
        expected, ours = self.output(), self.model(TOKENS).data
        assert ours.dtype == self.dtype
        np.testing.assert_allclose(ours, expected, rtol=self.bar, atol=self.bar * max(1, np.abs(expected).max()))
        carried = getattr(self.model, "adapters", {})
        names = [name for name in carried if not name.startswith("rows: ")]
        assert sorted(names) == sorted(self.adapters)
        for name in names:
            ours = {key: p for key, p in brought(self.model, carried[name]).items()}
            assert ours.keys() == self.adapters[name]["arrays"].keys()
            for key, p in ours.items():
                assert p.dtype == self.dtype
                np.testing.assert_allclose(p.data, self.adapters[name]["arrays"][key], 1e-6, 1e-7, err_msg=key)

    @invariant()
    def the_base_is_frozen_while_something_is_carried(self):
        own = {id(p) for a in getattr(self.model, "adapters", {}).values() for p in brought(self.model, a).values()}
        trained = [name for name, p in self.model.named_parameters() if p.requires_grad and id(p) not in own]
        assert not self.adapters or not trained


TestEverySequence = Machine.TestCase
TestEverySequence.settings = settings(
    max_examples=30, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)

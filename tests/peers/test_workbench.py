"""The workbench beside PEFT: Delta W of its files, and what it makes of ours."""

import json

import numpy as np
import pytest

from minilora.interop import workbench
from minilora.interop.adapter_files import read_adapter

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
peft = pytest.importorskip("peft", reason="this test needs PEFT: pip install 'minilora[peers]'")
safetensors = pytest.importorskip("safetensors.torch", reason="needs safetensors")

pytestmark = pytest.mark.filterwarnings("ignore")
BAR = 1e-6
TARGETS = ["q_proj", "up_proj", "conv", "point", "wte"]


class Model(torch.nn.Module):
    """Two layers of the kinds of modules that PEFT adapts, with weights of their own seed."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.wte = torch.nn.Embedding(11, 8)
        self.layers = torch.nn.ModuleList(
            torch.nn.ModuleDict({
                "q_proj": torch.nn.Linear(8, 8),
                "up_proj": torch.nn.Linear(8, 20),
                "conv": torch.nn.Conv2d(4, 6, 3),
                "point": torch.nn.Conv2d(4, 6, 1),
            })
            for _ in range(2)
        )  # fmt: skip
        self.head = torch.nn.Linear(8, 3)

    def forward(self, tokens):
        x = self.wte(tokens)
        for layer in self.layers:
            x = x + layer["q_proj"](x) + layer["up_proj"](x)[..., :8]
        return self.head(x)


def trained(folder, seed: int = 1, **config):
    """A folder that PEFT wrote, of an adapter whose numbers were moved, and {module: Delta W} as PEFT has it."""
    config = {"r": 3, "lora_alpha": 5, "target_modules": TARGETS, **config}
    model = peft.get_peft_model(Model(), peft.LoraConfig(**config))
    torch.manual_seed(seed)
    for name, p in model.named_parameters():
        if "lora_" in name and "magnitude" not in name:
            p.data += 0.3 * torch.randn_like(p)
    model.save_pretrained(folder)
    return folder, deltas(model)


def deltas(model, adapter: str = "default") -> dict:
    """{module: Delta W (d_out, d_in)} of a PEFT model, kernels flattened, an embedding's transposed."""
    found = {}
    for name, module in model.base_model.model.named_modules():
        if hasattr(module, "get_delta_weight") and adapter in (*module.lora_A, *module.lora_embedding_A):
            delta = module.get_delta_weight(adapter).detach().numpy()
            found[name] = delta.T if "wte" in name else delta.reshape(len(delta), -1)
    return found


def loaded(folder) -> dict:
    """{module: Delta W} of a folder that PEFT loads into a new model; every tensor has its place there."""
    model = peft.PeftModel.from_pretrained(Model(), folder)
    there = set(peft.get_peft_model_state_dict(model))
    assert set(safetensors.load_file(folder / "adapter_model.safetensors")) <= there
    return deltas(model)


def ours(folder) -> dict:
    """{module: Delta W} as the pairs have it."""
    pairs = read_adapter(folder).matrices
    return {name: B @ A for name, pair in pairs.items() for B, A in (pair.factors(),)}


def assert_same(found: dict, expected: dict) -> None:
    """The same modules, and updates that differ by no more than rounding does."""
    assert found.keys() == expected.keys()
    for name, delta in found.items():
        np.testing.assert_allclose(delta, expected[name], atol=BAR * max(1, np.abs(expected[name]).max()), err_msg=name)


SETTINGS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2, r"layers\.1\.up_proj": 4}, "alpha_pattern": {"conv": 7}},
    "beside": {"modules_to_save": ["head", "head"], "target_modules": ["q_proj", "wte"]},
    "regular": {"target_modules": r".*layers\.\d\.(q|up)_proj"},
    "all-linear": {"target_modules": "all-linear", "task_type": None},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_delta_w_of_peft_s_files(tmp_path, name):
    folder, expected = trained(tmp_path / "a", **SETTINGS[name])
    assert_same(ours(folder), expected)
    rows = workbench.show(folder)["matrices"]
    assert [row["name"] for row in rows] == list(read_adapter(folder).matrices)
    for row in rows:
        delta = expected[row["name"]].astype(float)
        assert row["frobenius_norm"] == pytest.approx(np.linalg.norm(delta), rel=BAR)
        assert row["spectral_norm"] == pytest.approx(np.linalg.norm(delta, 2), rel=BAR)


@pytest.mark.parametrize("name", SETTINGS)
def test_peft_loads_what_was_resized(tmp_path, name):
    """And its Delta W is the dense one's best approximation."""
    folder, expected = trained(tmp_path / "a", **SETTINGS[name])
    found = workbench.resize(folder, tmp_path / "b", rank=2)
    there = loaded(tmp_path / "b")
    assert there.keys() == expected.keys() and found["rank"] == 2
    for row in found["matrices"]:
        u, s, vt = np.linalg.svd(expected[row["name"]].astype(float))
        np.testing.assert_allclose(there[row["name"]], (u[:, :2] * s[:2]) @ vt[:2], atol=BAR * s[0])
        assert row["lost"] == pytest.approx(np.linalg.norm(s[2:]), abs=BAR * s[0])


def test_peft_loads_ranks_of_their_own(tmp_path):
    """--energy: a rank for each matrix, which rank_pattern and alpha_pattern say."""
    folder, expected = trained(tmp_path / "a", r=6, use_rslora=True)
    found = workbench.resize(folder, tmp_path / "b", energy=0.8)
    there = loaded(tmp_path / "b")
    assert len({row["rank"] for row in found["matrices"]}) > 1
    for row in found["matrices"]:
        s = np.linalg.svd(expected[row["name"]].astype(float), compute_uv=False)
        k = int((np.cumsum(s**2) / (s**2).sum() < 0.8).sum()) + 1
        lost = np.linalg.norm(there[row["name"]] - expected[row["name"]])
        assert row["rank"] == k and lost == pytest.approx(np.linalg.norm(s[k:]), abs=BAR * s[0])


def two(tmp_path, first=None, second=None):
    """Two folders of different ranks and scales, and one PEFT model with both adapters."""
    one, _ = trained(tmp_path / "one", 1, **(first or {}))
    other, _ = trained(tmp_path / "other", 2, **{"r": 2, "lora_alpha": 7, **(second or {})})
    model = peft.PeftModel.from_pretrained(Model(), one, adapter_name="one")
    model.load_adapter(other, adapter_name="other")
    return one, other, model


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0, -1.0), (-0.5, 2.0)], ids=str)
def test_sums_are_peft_s(tmp_path, weights):
    """add_weighted_adapter's "cat" is our exact sum, "svd" our sum cut to a rank."""
    one, other, model = two(tmp_path)
    workbench.combine({one: weights[0], other: weights[1]}, tmp_path / "sum")
    model.add_weighted_adapter(["one", "other"], list(weights), "sum", combination_type="cat")
    assert_same(loaded(tmp_path / "sum"), deltas(model, "sum"))
    assert_same(loaded(tmp_path / "sum"), ours(tmp_path / "sum"))
    workbench.combine({one: weights[0], other: weights[1]}, tmp_path / "cut", rank=2)
    model.add_weighted_adapter(["one", "other"], list(weights), "cut", combination_type="svd", svd_rank=2)
    assert_same(loaded(tmp_path / "cut"), deltas(model, "cut"))


def test_sums_of_rslora_are_exact_where_peft_s_are_not(tmp_path):
    """PEFT keeps use_rslora beside alpha = r, so that its sum is sqrt(r) times too large; ours is the sum."""
    one, other, model = two(tmp_path, {"use_rslora": True}, {"use_rslora": True})
    workbench.combine({one: 0.7, other: 0.3}, tmp_path / "sum")
    first, second = deltas(model, "one"), deltas(model, "other")
    assert_same(loaded(tmp_path / "sum"), {name: 0.7 * first[name] + 0.3 * second[name] for name in first})
    model.add_weighted_adapter(["one", "other"], [0.7, 0.3], "sum", combination_type="cat")
    there, exact = deltas(model, "sum"), loaded(tmp_path / "sum")
    assert np.linalg.norm(there["layers.0.q_proj"]) > 2 * np.linalg.norm(exact["layers.0.q_proj"])


def test_sums_over_targets_that_differ(tmp_path):
    """A matrix that one adapter lacks is the other's; the result targets the union, by whole names."""
    one, other, model = two(tmp_path, {"target_modules": ["q_proj", "wte"]}, {"target_modules": ["q_proj", "conv"]})
    workbench.combine({one: 0.7, other: -0.3}, tmp_path / "sum")
    first, second = deltas(model, "one"), deltas(model, "other")
    expected = {name: 0.7 * first.get(name, 0) - 0.3 * second.get(name, 0) for name in {*first, *second}}
    there = loaded(tmp_path / "sum")
    assert {*there} == {"wte", *(f"layers.{i}.{kind}" for i in (0, 1) for kind in ("q_proj", "conv"))}
    assert_same(there, expected)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"init_lora_weights": "pissa"}], ids=["dora", "pissa"])
def test_methods_that_need_the_base(tmp_path, settings):
    """Delta W is what merging adds to W: DoRA's with its lengths, and PiSSA's not counted from the residual base."""
    base = tmp_path / "base"
    base.mkdir()
    safetensors.save_file(Model().state_dict(), base / "model.safetensors")
    folder = tmp_path / "a"
    model = peft.get_peft_model(
        Model(), peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "up_proj"], **settings)
    )
    torch.manual_seed(3)
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data += 0.1 * torch.randn_like(p)
    model.save_pretrained(folder)
    merged, start = model.merge_and_unload().state_dict(), Model().state_dict()
    names = [f"layers.{i}.{kind}" for i in (0, 1) for kind in ("q_proj", "up_proj")]
    expected = {name: (merged[f"{name}.weight"] - start[f"{name}.weight"]).double().numpy() for name in names}
    for row in workbench.show(folder, base)["matrices"]:
        assert row["frobenius_norm"] == pytest.approx(np.linalg.norm(expected[row["name"]]), rel=1e-4)
    with pytest.raises(ValueError, match="give the checkpoint it was trained on: --base FOLDER"):
        workbench.resize(folder, tmp_path / "b", rank=2)
    workbench.resize(folder, tmp_path / "b", rank=3, base=base)
    there = loaded(tmp_path / "b")
    config = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert config["init_lora_weights"] is True and not config["use_dora"]
    for name, delta in expected.items():
        u, s, vt = np.linalg.svd(delta)
        np.testing.assert_allclose(there[name], (u[:, :3] * s[:3]) @ vt[:3], atol=2e-5 * s[0])


def test_dora_s_files_keep_their_lengths_where_nothing_is_changed(tmp_path):
    """An adapter that is written as it was read loads as it was."""
    from minilora.interop.adapter_writing import write_adapter

    folder, _ = trained(tmp_path / "a", use_dora=True, target_modules=["q_proj", "up_proj"])
    write_adapter(read_adapter(folder), tmp_path / "b")
    one, other = (safetensors.load_file(f / "adapter_model.safetensors") for f in (folder, tmp_path / "b"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    peft.PeftModel.from_pretrained(Model(), tmp_path / "b")


def test_what_peft_calls_other_methods(tmp_path):
    """Their files are told from LoRA's, and shown by what they hold."""
    for name, config in {
        "ia3": peft.IA3Config(target_modules=["q_proj", "up_proj"], feedforward_modules=["up_proj"]),
        "loha": peft.LoHaConfig(r=2, target_modules=["q_proj"]),
        "lokr": peft.LoKrConfig(r=2, target_modules=["q_proj"]),
        "oft": peft.OFTConfig(oft_block_size=2, r=0, target_modules=["q_proj"]),
        "vera": peft.VeraConfig(r=2, target_modules=["q_proj"]),
        "adalora": peft.AdaLoraConfig(init_r=2, total_step=10, target_modules=["q_proj"]),
    }.items():
        peft.get_peft_model(Model(), config).save_pretrained(tmp_path / name)
        found = workbench.show(tmp_path / name)
        assert found["method"] == name and not found["matrices"] and found["tensors"], name

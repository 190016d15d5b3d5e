"""The workbench beside the dense matrices: what it says of adapters' files, and what it writes."""

import math
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from adapter_making import draw, kohya_file, peft_folder, two
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import minilora as ml
from minilora.interop import adapter_writing, workbench
from minilora.interop.adapter_files import read_adapter
from minilora.interop.updates import layer_and_kind

DATA = Path(os.environ.get("MINILORA_DATA", "../shared/data")) / "adapters"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the adapters of others: MINILORA_DATA=FOLDER")
CONFIG = ml.GPTConfig(vocab_size=96, block_size=8, n_layer=2, n_head=2, n_embd=8)


def dense(path) -> dict:
    """{module: Delta W} of an adapter's file."""
    return {name: B @ A for name, pair in read_adapter(path).matrices.items() for B, A in (pair.factors(),)}


def cut(matrix, k: int):
    """The best approximation of rank k, and its distance."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :k] * s[:k]) @ vt[:k], np.linalg.norm(s[k:])


def in_form(form: str, place: Path, matrices: dict) -> Path:
    """An adapter of the same matrices, at the scale 4 (r 2, alpha 8), in one of the forms of files."""
    if form == "peft":
        return peft_folder(place, matrices)
    if form == "kohya":
        return kohya_file(place.with_suffix(".safetensors"), matrices, 8.0, ss_network_dim="2", ss_network_alpha="8")
    model = ml.add_lora(ml.GPT(CONFIG), ml.LoRAConfig(rank=2, alpha=8))
    layers = model.adapters["default"].modules
    for layer, (B, A) in zip(list(layers.values()), matrices.values(), strict=False):
        layer.lora_B.data[...], layer.lora_A.data[...] = B, A
    for layer in list(layers.values())[len(matrices) :]:
        layer.lora_B.data[...] = draw(8, 8, seed=9)[0]
    return ml.save_adapter(model, place.with_suffix(".npz"))


FORMS = ("peft", "kohya", "minilora")


# --- the plain script ------------------------------------------------------------------------------------------------


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("name", ["emotion-distilbert", "tigrinya-gpt2"])
def test_the_files_of_others_by_a_plain_script(name):
    """Every number from the definitions, on the dense matrices, with NumPy alone."""
    tensors = load_file(DATA / name / "adapter_model.safetensors")
    scale = {"emotion-distilbert": 16 / 8, "tigrinya-gpt2": 32 / 8}[name]
    found = workbench.show(DATA / name)
    assert (found["rank"], found["scale"]) == (8, scale)
    bases = sorted(key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight"))
    assert sorted(row["name"] for row in found["matrices"]) == [
        base.removeprefix("base_model.model.") for base in bases
    ]
    for place, row in enumerate(found["matrices"]):
        A, B = (tensors[f"base_model.model.{row['name']}.lora_{half}.weight"].astype("float64") for half in "AB")
        delta = scale * B @ A
        assert row["shape"] == list(delta.shape) and row["rank"] == 8
        assert row["frobenius_norm"] == pytest.approx(np.sqrt(np.sum(delta**2)), rel=1e-10)
        if place % 9 != 1:  # the dense decomposition takes seconds
            continue
        s = np.linalg.svd(delta, compute_uv=False)
        p = s[:8] / s[:8].sum()
        held = np.cumsum(s**2) / np.sum(s**2)
        expected = {
            "spectral_norm": s[0],
            "effective_rank": np.exp(-np.sum(p * np.log(p))),
            "stable_rank": np.sum(delta**2) / s[0] ** 2,
            "rank_90": np.argmax(held >= 0.90) + 1,
            "rank_99": np.argmax(held >= 0.99) + 1,
        }
        assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-10)


@needs_data
@pytest.mark.slow
def test_the_files_of_others_are_cut_and_added_exactly(tmp_path):
    """Cut to rank 3, and the adapter minus its cut: what the cut lost."""
    path = DATA / "emotion-distilbert"
    found = workbench.resize(path, tmp_path / "cut", rank=3)
    whole, less = dense(path), dense(tmp_path / "cut")
    for row in found["matrices"][:1]:
        best, lost = cut(whole[row["name"]], 3)
        np.testing.assert_allclose(less[row["name"]], best, atol=1e-6)
        assert row["lost"] == pytest.approx(lost, rel=1e-10)  # the optimum, although the file is in float32
    heads = read_adapter(tmp_path / "cut").others
    assert all(np.array_equal(stored.read(), heads[n].read()) for n, stored in read_adapter(path).others.items())
    with pytest.raises(ValueError, match="both hold parts trained in full"):
        workbench.combine({path: 1.0, tmp_path / "cut": -1.0}, tmp_path / "rest")
    path = DATA / "tigrinya-gpt2"
    small = workbench.resize(path, tmp_path / "small", energy=0.9)
    rest = workbench.combine({path: 1.0, tmp_path / "small": -1.0}, tmp_path / "rest")
    assert rest["norm"] == pytest.approx(small["lost"], rel=1e-6) and rest["norm"] ** 2 <= 0.1 * small["norm"] ** 2


# --- in every form ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_resizing_keeps_form_scale_and_precision(tmp_path, form):
    """Rank 1 of each matrix is the best one; r, alpha and s say so in each form's own words."""
    path = in_form(form, tmp_path / "a", two(8, 8))
    output = (tmp_path / "b").with_suffix(path.suffix)
    found = workbench.resize(path, output, rank=1)
    before, after, new = dense(path), dense(output), read_adapter(output)
    assert (new.form, new.rank, new.alpha, new.scale) == (form, 1, 4, 4.0)
    assert {pair.a.dtype for pair in new.matrices.values()} == {np.dtype("float32")}
    for row in found["matrices"]:
        best, lost = cut(before[row["name"]], 1)
        np.testing.assert_allclose(after[row["name"]], best, atol=1e-5)
        assert row["lost"] == pytest.approx(lost, rel=1e-9) and (row["rank_before"], row["rank"]) == (2, 1)
    assert found["lost"] == pytest.approx(math.sqrt(sum(row["lost"] ** 2 for row in found["matrices"])))
    if form == "kohya":
        assert new.config == {"ss_network_dim": "1", "ss_network_alpha": "4"}


@pytest.mark.parametrize("form", FORMS)
def test_sums_in_every_form(tmp_path, form):
    """Weights of either sign; exact, and cut to a rank with its error."""
    one = in_form(form, tmp_path / "one", two(8, 8))
    other = in_form(form, tmp_path / "other", two(8, 8, seed=5))
    ends = one.suffix
    workbench.combine({one: 0.7, other: -0.3}, tmp_path / f"sum{ends}")
    expected = {name: 0.7 * dense(one)[name] - 0.3 * dense(other)[name] for name in dense(one)}
    for name, delta in dense(tmp_path / f"sum{ends}").items():
        np.testing.assert_allclose(delta, expected[name], atol=1e-5)
    found = workbench.combine({one: 0.7, other: -0.3}, tmp_path / f"cut{ends}", rank=2)
    for row in found["matrices"]:
        best, lost = cut(expected[row["name"]], 2)
        np.testing.assert_allclose(dense(tmp_path / f"cut{ends}")[row["name"]], best, atol=1e-5)
        assert row["lost"] == pytest.approx(lost, rel=1e-6, abs=1e-5) and row["ranks"] == [2, 2]


def test_our_own_files_load_after_resizing_and_adding(tmp_path):
    """On the model that they were trained on: ranks of their own, and one method's configuration for all."""
    path = in_form("minilora", tmp_path / "a", two(8, 8))
    workbench.resize(path, tmp_path / "b.npz", energy=0.9)
    workbench.combine({path: 1.0, tmp_path / "b.npz": 0.5}, tmp_path / "c.npz")
    for name in ("b.npz", "c.npz"):
        model = ml.load_adapter(ml.GPT(CONFIG), tmp_path / name)
        there = dense(tmp_path / name)
        for path_, delta in ml.delta_weights(model).items():
            np.testing.assert_allclose(delta, there[path_], atol=1e-5)


def test_dora_and_pissa_of_ours_with_their_base(tmp_path):
    """The workbench's Delta W is `delta_weights`, which the model itself computes."""
    ml.save_model(ml.GPT(CONFIG), tmp_path / "base.npz")
    for config in (ml.DoRAConfig(rank=2), ml.LoRAConfig(rank=2, init="pissa")):
        model = ml.add_adapter(ml.load_model(tmp_path / "base.npz"), config)
        for p in model.parameters(trainable=True):
            p.data[...] += 0.3 * np.random.default_rng(p.size).normal(size=p.shape)
            p.changed()
        path = ml.save_adapter(model, tmp_path / f"{config.kind}.npz")
        rows = workbench.show(path, tmp_path / "base.npz")["matrices"]
        for row in rows:
            delta, W = (
                ml.delta_weights(model)[row["name"]],
                ml.load_model(tmp_path / "base.npz").get_module(row["name"]),
            )
            assert row["frobenius_norm"] == pytest.approx(np.linalg.norm(delta), rel=1e-5)
            assert row["weight_norm"] == pytest.approx(np.linalg.norm(W.weight.data), rel=1e-5)
        found = workbench.resize(path, tmp_path / "small.npz", rank=2, base=tmp_path / "base.npz")
        small = ml.load_adapter(ml.load_model(tmp_path / "base.npz"), tmp_path / "small.npz")
        assert small.adapters["default"].kind == "lora"
        for row in found["matrices"]:
            best, lost = cut(ml.delta_weights(model)[row["name"]].astype(float), 2)
            np.testing.assert_allclose(ml.delta_weights(small)[row["name"]], best, atol=1e-5)
            assert row["lost"] == pytest.approx(lost, rel=1e-4)


def test_with_a_base_an_update_stands_beside_its_weight(tmp_path):
    """Norms, amplification and intruders are those of analysis.rank; a bare model's names, and GPT-2's transposes."""
    rank, rng = ml.analysis.rank, np.random.default_rng(0)
    B, A = draw(6, 5)
    W = rng.normal(size=(6, 5)).astype("float32")
    names = "transformer.h.0.attn.c_attn", "transformer.h.0.mlp.up"
    folder = peft_folder(tmp_path / "a", {name: (B, A) for name in names}, fan_in_fan_out=True)
    base = tmp_path / "base"
    base.mkdir()
    save_file({"h.0.attn.c_attn.weight": W.T.copy(), "h.0.mlp.up.weight": W}, base / "model.safetensors")
    (base / "config.json").write_text('{"model_type": "gpt2"}')
    delta = 4 * B.astype(float) @ A
    for row in workbench.show(folder, base)["matrices"]:
        assert row["weight_norm"] == pytest.approx(np.linalg.norm(W)) and len(row) == 13
        assert row["relative_norm"] == pytest.approx(np.linalg.norm(delta) / np.linalg.norm(W))
        assert row["amplification"] == pytest.approx(rank.amplification(W, delta, 2), rel=1e-6)
        assert row["intruders"] == len(rank.intruder_dimensions(W, W + delta, 5))


def test_sixteen_bits_stay_sixteen_bits_and_what_rounding_takes_is_told(tmp_path):
    """Resized in bfloat16, `lost` is the distance of what is written; added, in float32, nothing is lost."""
    matrices = {n: tuple(x.astype(ml_dtypes.bfloat16) for x in pair) for n, pair in two(40, 30, 4).items()}
    folder = peft_folder(tmp_path / "a", matrices, r=4)
    found = workbench.resize(folder, tmp_path / "b", rank=3)
    before, after = dense(folder), dense(tmp_path / "b")
    assert read_adapter(tmp_path / "b").matrices[found["matrices"][0]["name"]].a.dtype == ml_dtypes.bfloat16
    for row in found["matrices"]:
        name = row["name"]
        assert row["lost"] == pytest.approx(np.linalg.norm(before[name] - after[name]), rel=1e-9)
        assert row["lost"] > cut(before[name], 3)[1]
    found = workbench.combine({folder: 0.3}, tmp_path / "c")
    assert found["lost"] < 1e-6 * found["norm"]


def test_a_rank_beyond_the_matrix_is_cut_to_it_without_loss(tmp_path):
    """Two adapters of rank 4 on a matrix of 5 x 6 make one of rank 5, which is all there is."""
    one = peft_folder(tmp_path / "one", two(5, 6, 4), r=4)
    other = peft_folder(tmp_path / "other", two(5, 6, 4, seed=7), r=4)
    found = workbench.combine({one: 1.0, other: 1.0}, tmp_path / "sum")
    assert found["rank"] == 5 and found["lost"] < 1e-6 * found["norm"]


def test_what_needs_no_cut_stays_bit_for_bit(tmp_path):
    """Of ranks 3 and 1, rank 1 of the second is as it was."""
    matrices = {"a.layers.0.x": draw(r=3), "a.layers.0.y": draw(r=1)}
    folder = peft_folder(tmp_path / "a", matrices, r=3, rank_pattern={"y": 1})
    found = workbench.resize(folder, tmp_path / "b", rank=2)
    new = read_adapter(tmp_path / "b").matrices
    assert [row["rank"] for row in found["matrices"]] == [2, 1] and found["matrices"][1]["lost"] < 1e-14
    np.testing.assert_array_equal(new["a.layers.0.y"].A, matrices["a.layers.0.y"][1])


def test_kernels_keep_their_shapes(tmp_path):
    rng = np.random.default_rng(0)
    kernels = {"lora_unet_c": (rng.normal(size=(5, 2, 1, 1)), rng.normal(size=(2, 3, 3, 3)))}
    path = kohya_file(tmp_path / "a.safetensors", kernels, 2.0)
    workbench.resize(path, tmp_path / "b.safetensors", rank=1)
    written = load_file(tmp_path / "b.safetensors")
    assert written["lora_unet_c.lora_down.weight"].shape == (1, 3, 3, 3)
    assert written["lora_unet_c.lora_up.weight"].shape == (5, 1, 1, 1) and written["lora_unet_c.alpha"] == 1
    np.testing.assert_allclose(dense(tmp_path / "b.safetensors")["lora_unet_c"], cut(dense(path)["lora_unet_c"], 1)[0])


def test_three_factors_become_two(tmp_path):
    """LyCORIS's lora_mid goes into A, and the file holds what any reader of lora_down and lora_up multiplies."""
    rng = np.random.default_rng(0)
    up, mid, down = (rng.normal(size=shape) for shape in ((5, 3, 1, 1), (3, 3, 2, 2), (3, 4, 1, 1)))
    path = kohya_file(tmp_path / "a.safetensors", {"x": (up, down)}, 3.0, {"x.lora_mid.weight": mid})
    workbench.resize(path, tmp_path / "b.safetensors", rank=2)
    written = load_file(tmp_path / "b.safetensors")
    assert {name: value.shape for name, value in written.items()} == {
        "x.lora_down.weight": (2, 4, 2, 2), "x.lora_up.weight": (5, 2, 1, 1), "x.alpha": (),
    }  # fmt: skip
    np.testing.assert_allclose(dense(tmp_path / "b.safetensors")["x"], cut(dense(path)["x"], 2)[0], atol=1e-12)


def test_one_matrix_under_two_forms_of_its_name(tmp_path):
    """Image tools write "lora_unet_a_b" for "a.b": the same adapter, in two files."""
    matrices = {"a.layers.0.q": draw(), "a.layers.1.q": draw(seed=1)}
    folder = peft_folder(tmp_path / "a", matrices)
    path = kohya_file(
        tmp_path / "b.safetensors",
        {f"lora_unet_{n.replace('.', '_')}": (B / 2, A) for n, (B, A) in matrices.items()},
        8.0,
    )
    found = workbench.compare(folder, path)
    assert (found["cosine"], found["norm_ratio"]) == (pytest.approx(1), pytest.approx(0.5))
    workbench.combine({folder: 1.0, path: -1.0}, tmp_path / "c")
    for name, delta in dense(tmp_path / "c").items():
        np.testing.assert_allclose(delta, dense(folder)[name] / 2, atol=1e-6)


def test_two_text_encoders_are_two(tmp_path):
    """Image models have te1 and te2 with the same names inside: told apart, and between forms refused."""
    names = [f"lora_te{i}_text_model_encoder_layers_0_mlp_fc1" for i in (1, 2)]
    one = kohya_file(tmp_path / "one.safetensors", {name: draw(seed=i) for i, name in enumerate(names)})
    swapped = kohya_file(tmp_path / "two.safetensors", {name: draw(seed=i) for i, name in enumerate(names[::-1])})
    found = workbench.compare(one, swapped)
    assert [row["name"] for row in found["matrices"]] == names and abs(found["cosine"]) < 0.9
    workbench.combine({one: 1.0, swapped: 1.0}, tmp_path / "sum.safetensors")
    for name, delta in dense(tmp_path / "sum.safetensors").items():
        np.testing.assert_allclose(delta, dense(one)[name] + dense(swapped)[name], atol=1e-5)
    folder = peft_folder(tmp_path / "a", {"text_model.encoder.layers.0.mlp.fc1": draw()})
    with pytest.raises(ValueError, match=r"one.safetensors: two of its matrices would have one name in another form"):
        workbench.compare(folder, one)


def test_a_single_file_with_its_base(tmp_path):
    """Its names are found in the base; DoRA's Delta W = m / ||W + s B A|| (W + s B A) - W, beside PEFT's."""
    name, flat, (B, A) = "model.layers.0.self_attn.q_proj", "lora_te_model_layers_0_self_attn_q_proj", draw(6, 6)
    rng = np.random.default_rng(1)
    W, m = rng.normal(size=(6, 6)), rng.uniform(0.5, 2, size=(6, 1))
    base = tmp_path / "base"
    base.mkdir()
    save_file({f"{name}.weight": W}, base / "model.safetensors")
    one = kohya_file(tmp_path / "k.safetensors", {flat: (B, A)}, 8.0, {f"{flat}.dora_scale": m})
    other = peft_folder(tmp_path / "p", {name: (B, A)}, {f"{name}.lora_magnitude_vector": m[:, 0]}, use_dora=True)
    V = W + 4 * B.astype(float) @ A
    delta = m / np.linalg.norm(V, axis=1, keepdims=True) * V - W
    row = workbench.show(one, base)["matrices"][0]
    assert row["name"] == flat and row["frobenius_norm"] == pytest.approx(np.linalg.norm(delta), rel=1e-10)
    assert workbench.compare(one, other, base)["cosine"] == pytest.approx(1, abs=1e-10)
    workbench.resize(one, tmp_path / "small.safetensors", rank=2, base=base)
    np.testing.assert_allclose(dense(tmp_path / "small.safetensors")[flat], cut(delta, 2)[0], atol=1e-5)
    workbench.combine({one: 1.0, other: -0.5}, tmp_path / "sum.safetensors", base=base)
    np.testing.assert_allclose(dense(tmp_path / "sum.safetensors")[flat], delta / 2, atol=1e-5)
    with pytest.raises(ValueError, match=r"base is not the base of .*lora_te_x \(no module\)"):
        workbench.show(kohya_file(tmp_path / "x.safetensors", {"lora_te_x": (B, A)}), base)


def test_a_base_that_may_not_be_read_is_no_base_that_is_not_there(tmp_path, monkeypatch):
    """The library of .safetensors says of such a file that there is none."""
    save_file({"x.weight": np.ones((6, 5))}, tmp_path / "model.safetensors")
    adapter, file, real = peft_folder(tmp_path / "a", two()), tmp_path / "model.safetensors", open

    def refused(name, *how, **more):
        if Path(name) == file:
            raise PermissionError(13, "Permission denied", str(name))
        return real(name, *how, **more)

    def opened(path, framework):
        if path == file:
            raise FileNotFoundError(f"No such file or directory: {path}")
        return safe_open(path, framework)

    monkeypatch.setattr("builtins.open", refused)
    monkeypatch.setattr("safetensors.safe_open", opened)
    with pytest.raises(PermissionError, match=rf"^show: {file}: Permission denied$"):
        workbench.show(adapter, tmp_path)


def test_a_name_that_says_another_form_is_refused(tmp_path):
    """A single file under .npz, or our own under .safetensors, would be taken for what it is not."""
    k = kohya_file(tmp_path / "k.safetensors", two())
    ours = in_form("minilora", tmp_path / "a", two(8, 8))
    for path, wrong, right in ((k, "b.npz", ".safetensors"), (ours, "b.safetensors", ".npz")):
        with pytest.raises(ValueError, match=f"{wrong}' should end in {right}"):
            workbench.resize(path, tmp_path / wrong, rank=1)
        with pytest.raises(ValueError, match=f"{wrong}' should end in {right}"):
            workbench.combine({path: 2.0}, tmp_path / wrong)
        assert not (tmp_path / wrong).exists()


@pytest.mark.parametrize("start", ["olora", "corda", "pissa_niter_4", "loftq"])
def test_starts_that_cannot_be_had_again_are_refused_with_a_base(tmp_path, start):
    """What they took out of W is drawn, or was computed from data: Delta W would be another one."""
    folder, base = peft_folder(tmp_path / "a", two(), init_lora_weights=start), tmp_path / "base"
    base.mkdir()
    save_file({f"{name}.weight": np.eye(6, 5) for name in two()}, base / "model.safetensors")
    with pytest.raises(ValueError, match=rf"what {start} took out of W cannot be had again here; PEFT does where"):
        workbench.show(folder, base)
    assert workbench.show(folder)["rank"] == 2
    with pytest.raises(ValueError, match=f"it started from {start}"):
        workbench.resize(folder, tmp_path / "b", rank=1)


def test_comparisons_are_those_of_the_dense_matrices(tmp_path):
    one, other = peft_folder(tmp_path / "one", two()), peft_folder(tmp_path / "other", two(r=3, seed=4), r=3)
    found, first, second = workbench.compare(one, other), dense(one), dense(other)
    for row in found["matrices"]:
        a, b = first[row["name"]], second[row["name"]]
        assert row["cosine"] == pytest.approx(np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-10)
        assert row["norm_ratio"] == pytest.approx(np.linalg.norm(b) / np.linalg.norm(a))
        A1, A2 = (read_adapter(path).matrices[row["name"]].A for path in (one, other))
        assert row["similarity_A"] == pytest.approx(ml.analysis.rank.subspace_similarity(A1, A2, 2, 2))
    a, b = (np.concatenate([d.ravel() for d in every.values()]) for every in (first, second))
    assert found["cosine"] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize(
    ("cosine", "ratio", "words"),
    [
        (1.0, 0.5, "the same direction, half the size"),
        (-0.99, 1.05, "the opposite direction, the same size"),
        (0.01, 2.0, "an unrelated direction, twice the size"),
        (0.3, 3.14159, "a related direction, 3.14 times the size"),
        (-0.5, 0.01, "a direction partly against it, 0.01 times the size"),
    ],
)
def test_words(cosine, ratio, words):
    assert workbench.in_words(cosine, ratio) == words


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("transformer.h.3.attn.c_attn", ("transformer.h.3", "attn.c_attn")),
        ("model.layers.31.mlp.experts.5.up_proj", ("model.layers.31", "mlp.experts.*.up_proj")),
        ("blocks.0.attn.q_proj", ("blocks.0", "attn.q_proj")),
        ("distilbert.transformer.layer.5.attention.q_lin", ("distilbert.transformer.layer.5", "attention.q_lin")),
        ("lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q",
         ("lora_unet_down_blocks_0_attentions_1_transformer_blocks_0", "attn1_to_q")),
        ("lora_te_text_model_encoder_layers_10_self_attn_q_proj",
         ("lora_te_text_model_encoder_layers_10", "self_attn_q_proj")),
        ("lm_head", (None, "lm_head")),
    ],
)  # fmt: skip
def test_layers_and_kinds(name, expected):
    assert layer_and_kind(name) == expected


# --- what is refused, and what is left of an attempt -----------------------------------------------------------------


def test_what_cannot_be_resized_is_one_line_and_nothing_is_written(tmp_path):
    folder = peft_folder(tmp_path / "a", two())
    zero = peft_folder(tmp_path / "zero", {name: (0 * B, A) for name, (B, A) in two().items()})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    new = tmp_path / "new"
    odd = peft_folder(tmp_path / "odd", two(), {"score.weight": np.full((2, 2), np.inf, "float32")})
    before |= {path: path.read_bytes() for path in odd.iterdir()}
    for call, words in [
        (lambda: workbench.resize(odd, new, 1), r"odd: score.weight: entry \(0, 0\) is inf"),
        (lambda: workbench.resize(folder, new), "resize: rank = None and energy = None; give one of the two"),
        (lambda: workbench.resize(folder, new, 1, 0.5), "give one of the two"),
        (lambda: workbench.resize(folder, new, 3), "no matrix of .* has more than 2: nothing to cut"),
        (lambda: workbench.resize(folder, new, 0), "resize: .*rank = 0, expected a positive integer"),
        (lambda: workbench.resize(folder, new, energy=1.01), r"energy = 1.01, expected 0 < energy <= 1"),
        (lambda: workbench.resize(folder, new, energy="much"), "resize: energy = 'much', expected a number"),
        (lambda: workbench.resize(zero, new, 1), "zero: every Delta W is zero; nothing is written"),
        (lambda: workbench.resize(folder, folder, 1), "the output '.*a' is an input; choose another name"),
        (lambda: workbench.resize(folder, folder / "adapter_model.safetensors", 1), "is an input"),
        (
            lambda: workbench.resize(folder, tmp_path / "b.safetensors", 1),
            "names a file, and a PEFT adapter is a folder",
        ),
        (lambda: workbench.combine({}, new), "combine: weights = {}, expected one adapter or more"),
        (lambda: workbench.combine({folder: float("nan")}, new), "expected one adapter or more with finite numbers"),
        (lambda: workbench.combine({folder: 1.0, zero: 1.0}, zero), "is an input"),
        (lambda: workbench.combine({folder: 1.0}, new, rank=0), "combine: rank = 0, expected a positive integer"),
        (lambda: workbench.combine({folder: 1.0}, new, rank=1.5), "combine: rank = 1.5, expected a positive integer"),
        (lambda: workbench.combine({folder: 0.0}, new), "every Delta W is zero"),
        (lambda: workbench.combine({zero: 1.0}, new), "every Delta W is zero"),
        (lambda: workbench.combine({folder: 1.0, str(folder): -1.0}, new), "combine: the sum of .* is zero"),
    ]:
        with pytest.raises((ValueError, TypeError, OSError), match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_files_that_do_not_go_together_are_one_line(tmp_path):
    folder = peft_folder(tmp_path / "a", two())
    other, wide = peft_folder(tmp_path / "b", {"wte": draw()}), peft_folder(tmp_path / "c", two(n=7))
    with pytest.raises(
        ValueError, match=r"have no matrix in common: one adapts model.layers.0.self_attn.q_proj, one wte"
    ):
        workbench.combine({folder: 1.0, other: 1.0}, tmp_path / "new")
    with pytest.raises(
        ValueError, match=r"combine: model.layers.0.* is \(6, 5\) and \(6, 7\): adapters of different bases"
    ):
        workbench.combine({folder: 1.0, wide: 1.0}, tmp_path / "new")
    base = tmp_path / "base"
    base.mkdir()
    with pytest.raises(FileNotFoundError, match=r"base has no model\.safetensors"):
        workbench.show(folder, base)
    save_file({"layers.0.self_attn.q_proj.weight": np.ones((5, 6))}, base / "model.safetensors")
    listed = r"q_proj is \(6, 5\), the base's weight \(5, 6\); no weight of model.layers.1.self_attn.v_proj"
    with pytest.raises(ValueError, match=rf"base is not the base of .*a: model.layers.0.self_attn.{listed}"):
        workbench.show(folder, base)
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin is pickled"):
        workbench.show(folder, base)
    (base / "model.safetensors.index.json").write_text('{"weight_map": {"x": "model-1.safetensors"}}')
    with pytest.raises(
        FileNotFoundError, match=r"base lacks model-1\.safetensors, of 1 that model\.safetensors\.index\.json names"
    ):
        workbench.show(folder, base)


def test_an_attempt_that_fails_leaves_the_old_folder_as_it_was(tmp_path, monkeypatch):
    folder, output = peft_folder(tmp_path / "a", two()), peft_folder(tmp_path / "b", two(seed=3))
    before = {path.name: path.read_bytes() for path in output.iterdir()}

    def broken(*args):
        raise OSError("the disk is full")

    monkeypatch.setattr(adapter_writing, "peft_config", broken)
    with pytest.raises(OSError, match="the disk is full"):
        workbench.resize(folder, output, rank=1)
    monkeypatch.setattr(adapter_writing, "peft_config", lambda adapter: {"x": object()})
    with pytest.raises(TypeError):
        workbench.resize(folder, output, rank=1)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_what_sums_should_say_or_may_not_be(tmp_path):
    """PEFT's files name their bases, ours carry their fingerprint; biases of B have no place in a sum."""
    one = peft_folder(tmp_path / "one", two(), base_model_name_or_path="gpt2")
    other = peft_folder(
        tmp_path / "other", two(seed=3), {"score.weight": np.ones((2, 2), "f")}, base_model_name_or_path="llama"
    )
    found = workbench.combine({one: 1.0, other: 0.5}, tmp_path / "sum")
    assert found["notes"] == [
        f"what {other} holds beside its pairs is taken as it is",
        "they name different bases: gpt2, llama",
    ]
    assert list(read_adapter(tmp_path / "sum").others) == ["score.weight"]
    biased = peft_folder(tmp_path / "biased", two(), {"model.layers.0.self_attn.q_proj.lora_B.bias": np.ones(6, "f")})
    with pytest.raises(
        ValueError, match=r"biased has model.layers.0.self_attn.q_proj.lora_B.bias, which has no place in a sum"
    ):
        workbench.combine({one: 1.0, biased: 1.0}, tmp_path / "new")
    first = in_form("minilora", tmp_path / "a", two(8, 8))
    model = ml.add_lora(ml.GPT(CONFIG, rng=1), ml.LoRAConfig(rank=2))
    for p in model.parameters(trainable=True):
        p.data[...] += 1
        p.changed()
    second = ml.save_adapter(model, tmp_path / "b.npz")
    with pytest.raises(ValueError, match=r"a.npz and .*b.npz were trained on different bases"):
        workbench.combine({first: 1.0, second: 1.0}, tmp_path / "new.npz")

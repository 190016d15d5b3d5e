"""Files: what is written comes back, what is damaged is refused, and nothing is ever half written or unpickled."""

import dataclasses
import json
import pickle
import re
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minilora as ml
from minilora.nn import storage
from minilora.nn.storage import load_arrays, save_arrays, write_beside

CONFIG = ml.GPTConfig(vocab_size=11, block_size=6, n_layer=1, n_head=2, n_embd=8)


def test_arrays_and_header_come_back(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b.c": np.array(3, np.int64), "empty": np.zeros((0, 2), np.float16)}
    header = {"kind": "thing", "list": [1, 2.5, None, "ü"], "big": 2**127}
    path = save_arrays(tmp_path / "new folder" / "file.npz", arrays, header)
    assert path == tmp_path / "new folder" / "file.npz"
    loaded, loaded_header = load_arrays(path, "thing")
    assert loaded_header == header
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array)


def test_a_header_of_numpy_numbers_is_saved_as_numbers(tmp_path):
    """The configurations accept NumPy's integers, so a file must, too."""
    config = ml.GPTConfig(*np.array([11, 6, 1, 2, 8]))
    path = ml.save_model(ml.GPT(config), tmp_path / "model.npz", loss=np.float32(1.5))
    assert ml.load_model(path).config == config
    assert load_arrays(path, "model")[1]["loss"] == 1.5


def test_a_path_is_taken_as_it_is(tmp_path):
    path = ml.save_model(ml.GPT(CONFIG), str(tmp_path / "no_suffix"))
    assert path == tmp_path / "no_suffix"
    assert path.is_file()


@pytest.mark.parametrize("bias", [True, False])
def test_model_round_trip(tmp_path, bias):
    model = ml.GPT(ml.GPTConfig(11, 6, 2, 2, 8, dropout=0.25, bias=bias), rng=3)
    path = ml.save_model(model, tmp_path / "model.npz", settings={"steps": 3})
    loaded = ml.load_model(path)
    assert loaded.config == model.config
    tokens = np.arange(6)[None]
    np.testing.assert_array_equal(loaded(tokens).data, model(tokens).data)
    assert load_arrays(path, "model")[1]["settings"] == {"steps": 3}


def test_float16_storage_halves_the_file_and_rounds_once(tmp_path):
    model = ml.GPT(ml.GPTConfig(50, 16, 2, 2, 32), rng=3)
    full = ml.save_model(model, tmp_path / "full.npz")
    half = ml.save_model(model, tmp_path / "half.npz", dtype="float16")
    assert half.stat().st_size < 0.6 * full.stat().st_size
    for name, p in ml.load_model(half).named_parameters():
        assert p.dtype == np.float32
        np.testing.assert_array_equal(p.data, model.state_dict()[name].astype(np.float16).astype(np.float32))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz"):
        ml.load_model(tmp_path / "nowhere.npz")


@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.9, 0.99, 0.9999])
def test_truncated_file(tmp_path, share):
    whole = ml.save_model(ml.GPT(CONFIG), tmp_path / "model.npz").read_bytes()
    cut = tmp_path / "cut.npz"
    cut.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"cut\.npz is no complete minilora file"):
        ml.load_model(cut)


class Payload:
    """Unpickling this creates a file: proof that a loader has run somebody else's code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("form", ["member", "header", "bare pickle", "npy"])
def test_pickled_objects_are_never_unpickled(tmp_path, form):
    planted, path = tmp_path / "planted", tmp_path / "bad.npz"
    thing = np.array([Payload(planted)], dtype=object)
    header = np.array(json.dumps({"kind": "model"}))
    if form == "member":
        np.savez(path, a=thing, header=header)
    elif form == "header":
        np.savez(path, header=thing)
    elif form == "bare pickle":
        path.write_bytes(pickle.dumps(Payload(planted)))
    else:
        with path.open("wb") as file:
            np.save(file, thing, allow_pickle=True)
    with pytest.raises(ValueError, match=r"bad\.npz"):
        ml.load_model(path)
    assert not planted.exists()
    with path.open("rb") as file:  # the payload does work, where it is let
        loaded = np.load(file, allow_pickle=True)
        if form in ("member", "header"):
            loaded["a" if form == "member" else "header"]
    assert planted.exists()


def test_files_of_another_kind(tmp_path):
    adapter = ml.save_adapter(ml.add_lora(ml.GPT(CONFIG), ml.LoRAConfig(rank=2)), tmp_path / "adapter.npz")
    with pytest.raises(ValueError, match=r"adapter\.npz holds 'adapter', expected 'model'"):
        ml.load_model(adapter)

    plain = tmp_path / "plain.npz"
    np.savez(plain, a=np.ones(3))  # somebody's arrays, without a header
    with pytest.raises(ValueError, match=r"plain\.npz"):
        ml.load_model(plain)

    single = tmp_path / "single.npy"
    np.save(single, np.ones(3))
    with pytest.raises(ValueError, match=r"single\.npy"):
        ml.load_model(single)

    text = tmp_path / "text.npz"
    text.write_text("once upon a time")
    with pytest.raises(ValueError, match=r"text\.npz"):
        ml.load_model(text)

    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("header", "{}")
    with pytest.raises(ValueError, match=r"archive\.zip"):
        ml.load_model(archive)


@pytest.mark.parametrize("header", ["[1, 2]", "3", "not json", '{"kind": "model"}', '{"kind": "model", "config": {}}'])
def test_a_header_that_is_none(tmp_path, header):
    path = tmp_path / "odd.npz"
    np.savez(path, header=np.array(header))
    with pytest.raises(ValueError, match=r"odd\.npz"):
        ml.load_model(path)


def test_a_model_of_another_shape(tmp_path):
    """The header says one width, the arrays have another."""
    state = ml.GPT(CONFIG).state_dict()
    config = {"vocab_size": 11, "block_size": 6, "n_layer": 1, "n_head": 2, "n_embd": 16}
    path = save_arrays(tmp_path / "model.npz", state, {"kind": "model", "config": config})
    with pytest.raises(ValueError, match=r"wte\.weight has shape \(11, 8\), expected \(11, 16\)"):
        ml.load_model(path)


@settings(max_examples=150)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_as_it_was(tmp_path_factory, data):
    """Overwrite a few bytes anywhere: either a ValueError, or (in bytes that nothing reads) the same arrays."""
    folder = tmp_path_factory.mktemp("damage", numbered=True)
    arrays = {"a": np.linspace(0, 1, 40), "b": np.arange(5)}
    good = save_arrays(folder / "good.npz", arrays, {"kind": "thing"}).read_bytes()
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    path = folder / "damaged.npz"
    path.write_bytes(damaged)
    try:
        loaded, _ = load_arrays(path, "thing")
    except ValueError as error:
        assert "damaged.npz" in str(error)
        return
    for name in loaded.keys() & arrays.keys():  # a damaged member name may lose or rename an array, never change one
        np.testing.assert_array_equal(loaded[name], arrays[name])


def test_an_exception_in_the_middle_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "file"
    write_beside(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half of the new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_beside(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    write_beside(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_header_that_is_no_json_leaves_the_old_file(tmp_path):
    path = ml.save_model(ml.GPT(CONFIG), tmp_path / "model.npz")
    old = path.read_bytes()
    with pytest.raises(TypeError):
        ml.save_model(ml.GPT(CONFIG), path, record=object())
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="file"):
        ml.save_model(ml.GPT(CONFIG), tmp_path / "file" / "model.npz")
    with pytest.raises(OSError, match="file"):
        ml.save_model(ml.GPT(CONFIG), tmp_path / "file" / "below" / "model.npz")
    assert (tmp_path / "file").read_text() == "no folder"


def test_a_folder_in_the_place_of_the_file_leaves_no_litter(tmp_path):
    (tmp_path / "model.npz").mkdir()
    with pytest.raises(OSError, match=r"model\.npz"):
        ml.save_model(ml.GPT(CONFIG), tmp_path / "model.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["model.npz"]


def test_a_model_with_adapters_is_not_saved_as_a_plain_one(tmp_path):
    model = ml.add_lora(ml.GPT(CONFIG), ml.LoRAConfig(rank=2))
    with pytest.raises(ValueError, match=r"save_model: the model has an adapter; .*remove_lora"):
        ml.save_model(model, tmp_path / "model.npz")
    assert not list(tmp_path.iterdir())
    ml.merge_lora(model)
    ml.save_model(ml.remove_lora(model), tmp_path / "model.npz")


def test_the_file_is_readable_like_any_other(tmp_path):
    ours = ml.save_model(ml.GPT(CONFIG), tmp_path / "model.npz")
    assert ours.stat().st_mode & 0o044 == 0o044  # a temporary file starts out private


PRECISIONS = ("float16", "float32", "float64")


@pytest.mark.parametrize("dtype", [None, *PRECISIONS])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["wte.weight", "blocks.0.mlp.up_proj.bias", "ln_f.weight"])
def test_numbers_that_are_none_are_not_shipped(tmp_path, name, value, dtype):
    model, path = ml.GPT(CONFIG), tmp_path / "model.npz"
    old = ml.save_model(model, path).read_bytes()
    p = dict(model.named_parameters())[name]
    place = (2, 3) if p.ndim == 2 else (3,)
    p.data[place] = value
    with pytest.raises(ValueError, match=f"^save_model: {re.escape(f'{name}: entry {place} is {value}')}$"):
        ml.save_model(model, path, dtype=dtype)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("value, held, dtype", [(7e4, "float32", "float16"), (-1e39, "float64", "float32")])
def test_numbers_that_the_precision_has_not_are_not_shipped(tmp_path, value, held, dtype):
    model = ml.GPT(CONFIG).astype(held)
    model.ln_f.bias.data[5] = value
    ml.save_model(model, tmp_path / "whole.npz")
    words = re.escape(f"ln_f.bias: entry (5,) is {float(model.ln_f.bias.data[5])}, too large for {dtype}")
    with pytest.raises(ValueError, match=f"^save_model: {words}$"):
        ml.save_model(model, tmp_path / "model.npz", dtype=dtype)
    if dtype == "float32":  # a file of float64 numbers is read as float32, and says so, too
        with pytest.raises(ValueError, match=f"whole.npz: load_state_dict: {words.replace(':', '', 1)}"):
            ml.load_model(tmp_path / "whole.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["whole.npz"]


@pytest.mark.parametrize("dtype", ["int8", int, bool, "complex64", "bfloat16", "U3", object, 3])
def test_what_is_no_precision_to_save_in(tmp_path, dtype):
    with pytest.raises(TypeError, match=r"^save_model: dtype = .*, expected 'float16', 'float32' or 'float64'$"):
        ml.save_model(ml.GPT(CONFIG), tmp_path / "model.npz", dtype=dtype)
    assert not list(tmp_path.iterdir())


def test_a_file_with_numbers_that_are_none_is_refused_by_name(tmp_path):
    state = ml.GPT(CONFIG).state_dict()
    state["blocks.0.ln_1.weight"][4] = np.nan
    header = {"kind": "model", "config": dataclasses.asdict(CONFIG)}
    path = save_arrays(tmp_path / "bad.npz", state, header)
    with pytest.raises(ValueError, match=r"bad\.npz: blocks\.0\.ln_1\.weight: entry \(4,\) is nan$"):
        ml.load_model(path)


@pytest.mark.parametrize("path", [None, 3, b"model.npz", ["a"], ml.GPT])
def test_what_is_no_path(path):
    with pytest.raises(TypeError, match=r"^save_model: path = .*, expected the name of a file$"):
        ml.save_model(ml.GPT(CONFIG), path)
    with pytest.raises(TypeError, match=r"^load_model: path = .*, expected the name of a file$"):
        ml.load_model(path)


@pytest.mark.parametrize("model", [None, "base", np.ones(3), ml.GPT, {}])
def test_what_is_no_model(tmp_path, model):
    with pytest.raises(TypeError, match=r"^save_model: got .*, expected a GPT"):
        ml.save_model(model, tmp_path / "model.npz")


def test_a_file_called_base_is_not_taken_for_the_shipped_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="'base' is the model that comes with minilora"):
        ml.save_model(ml.GPT(CONFIG), "base")
    assert not list(tmp_path.iterdir())
    model = ml.GPT(CONFIG)
    ml.save_model(model, tmp_path / "base")
    for name in ("./base", tmp_path / "base", str(tmp_path / "base")):
        assert ml.load_model(name).count() == model.count()
    assert ml.load_model("base").count() == ml.load_model().count() == 822_016


@pytest.mark.parametrize(("compress", "size", "expected"), [
    (None, 99, zipfile.ZIP_DEFLATED), (None, 101, zipfile.ZIP_STORED),
    (True, 101, zipfile.ZIP_DEFLATED), (False, 99, zipfile.ZIP_STORED),
])  # fmt: skip
def test_large_files_are_not_compressed(compress, size, expected, tmp_path, monkeypatch):
    header = np.array('{"kind": "x"}').nbytes
    monkeypatch.setattr(storage, "COMPRESSED", 100 + header)
    path = save_arrays(tmp_path / "x.npz", {"a": np.zeros(size, "int8")}, {"kind": "x"}, compress)
    with zipfile.ZipFile(path) as file:
        assert {member.compress_type for member in file.infolist()} == {expected}
    assert load_arrays(path, "x")[0]["a"].size == size


def test_loading_copies_nothing_that_it_need_not(tmp_path, monkeypatch):
    """A model of several GB is there once as arrays of the file and once as parameters, and no third time."""
    model = ml.GPT(ml.GPTConfig(96, 64, 4, 2, 128))
    path, state = ml.save_model(model, tmp_path / "model.npz"), sum(p.data.nbytes for p in model.parameters())
    ml.load_model(path)  # what is imported on the way is imported
    tracemalloc.start()
    loaded = ml.load_model(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.6 * state
    pairs = zip(model.parameters(), loaded.parameters(), strict=True)
    assert all(np.array_equal(one.data, other.data) for one, other in pairs)

"""Files that somebody damaged, or made to do harm: one line that names the file, soon, and without much memory.

Real files of every kind (a model, adapters, a checkpoint) are cut, flipped, repacked and given other headers and
arrays. What loads all the same must be a whole thing; everything else is a ValueError.
"""

import io
import json
import pickle
import re
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minilora as ml
from minilora.nn.storage import load_arrays, save_arrays
from minilora.training.checkpoint import load_checkpoint, save_checkpoint

CONFIG = ml.GPTConfig(vocab_size=96, block_size=16, n_layer=1, n_head=2, n_embd=16)
ADAPTERS = {
    "lora": ml.LoRAConfig(rank=2, rank_pattern={"v_proj": 3}),
    "pissa": ml.LoRAConfig(rank=2, init="pissa"),
    "dora": ml.DoRAConfig(rank=2),
    "houlsby": ml.HoulsbyConfig(bottleneck=2),
    "prefix": ml.PrefixConfig(tokens=2, hidden=4),
    "prompt": ml.PromptConfig(tokens=2),
    "bitfit": ml.BitFitConfig(),
}
KINDS = ["model", *ADAPTERS, "checkpoint", "checkpoint-nf4"]
MOST = 300 * 2**20  # bytes: SLACK parameters in float32, drawn in float64, and what is beside them


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{kind: a whole file}"""
    folder = tmp_path_factory.mktemp("whole")
    made = {"model": ml.save_model(ml.GPT(CONFIG), folder / "model.npz")}
    for name, config in ADAPTERS.items():
        made[name] = ml.save_adapter(ml.add_adapter(ml.GPT(CONFIG), config), folder / f"{name}.npz")
    corpus = ml.load_corpus("unicode-names")
    for name in ("checkpoint", "checkpoint-nf4"):
        model = ml.GPT(CONFIG) if name == "checkpoint" else ml.quantize_model(ml.GPT(CONFIG), "nf4")
        run = ml.Run(ml.add_lora(model, ml.LoRAConfig(rank=2)), corpus, ml.Settings(steps=1, batch_size=2))
        made[name] = save_checkpoint(ml.train(run, progress=False), folder / f"{name}.npz")
    return made, corpus


def load(kind, path, corpus):
    """What a user calls for a file of this kind."""
    if kind == "model":
        return ml.load_model(path)
    return ml.load_adapter(ml.GPT(CONFIG), path) if kind in ADAPTERS else load_checkpoint(path, corpus)


def check_refused_or_whole(kind, path, corpus):
    """Load it: None, or the words of the ValueError, which name the file and are one line. Memory stays bounded."""
    tracemalloc.start()
    try:
        load(kind, path, corpus)
        return None
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MOST, f"{kind}: {peak:,} bytes"


ODD = st.sampled_from(
    [None, True, -1, 0, 10**9, 10**30, 2.5, float("nan"), "", "x", [], {}, [[[]]], [[0]], {"a": {}}, "1e9"]
)


def places(value, path=()):
    """Every place in a header."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield from places(item, (*path, key))


def with_value(value, path, new):
    """The header with another value, or none, at a place."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    if new is places and len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = with_value(copy[path[0]], path[1:], new)
    return copy


QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@QUICK
@given(data=st.data())
def test_an_odd_header_is_one_line(kind, data, files, tmp_path):
    arrays, header = load_arrays(files[0][kind], None)
    place = data.draw(st.sampled_from([p for p in places(header) if p]))
    odd = with_value(header, place, data.draw(ODD | st.just(places)))
    check_refused_or_whole(kind, save_arrays(tmp_path / "odd.npz", arrays, odd), files[1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@QUICK
@given(data=st.data())
def test_odd_arrays_are_one_line(kind, data, files, tmp_path):
    """Another type, another shape, none, or one more; only real numbers of the right shape may load."""
    arrays, header = load_arrays(files[0][kind], None)
    name = data.draw(st.sampled_from(sorted(arrays)))
    shape = arrays[name].shape
    other = {
        "strings": np.full(shape, "x"),
        "dates": np.zeros(shape, "datetime64[s]"),
        "complex": np.ones(shape, complex),
        "nan": np.full(shape, np.nan),
        "infinite": np.full(shape, -np.inf, "f4"),
        "huge": np.full(shape, 1e300),
        "structured": np.zeros(shape, [("a", "f4")]),
        "longer": np.zeros((*shape, 1), arrays[name].dtype),
        "empty": np.zeros(0, arrays[name].dtype),
    }
    if kind.startswith("checkpoint"):  # each of its arrays comes back in its own precision
        del other["huge"]
    choice = data.draw(st.sampled_from([*other, "gone"]))
    odd = {key: value for key, value in arrays.items() if key != name or choice != "gone"}
    odd |= {} if choice == "gone" else {name: other[choice]}
    assert check_refused_or_whole(kind, save_arrays(tmp_path / "odd.npz", odd, header), files[1]), (name, choice)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@QUICK
@given(data=st.data())
def test_bytes_cut_or_flipped_are_one_line(kind, data, files, tmp_path):
    whole = bytearray(files[0][kind].read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "bytes.npz"
    path.write_bytes(whole[: data.draw(st.sampled_from([len(whole), len(whole) // 2, 100, 4, 0]))])
    check_refused_or_whole(kind, path, files[1])


def repacked(source, path, method=zipfile.ZIP_DEFLATED, **members):
    """The same archive with other bytes for some members, compressed by another method."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, members.pop(name.removesuffix(".npy"), None) or old.read(name))
        for name, content in members.items():
            new.writestr(f"{name}.npy", content)
    return path


def npy(shape, dtype="<f4", content=b""):
    """An .npy file that says it has this shape."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + content


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused_unread(kind, method, files, tmp_path):
    """A bz2 member of 10 KB becomes gigabytes, and no length in front says so."""
    words = check_refused_or_whole(kind, repacked(files[0][kind], tmp_path / "bomb.npz", method), files[1])
    assert "compressed in another way" in words


@pytest.mark.slow
def test_a_member_that_says_it_is_larger_than_the_file_is_refused_unread(files, tmp_path):
    zeros = npy((2**27,), content=bytes(2**29))  # half a gibibyte, deflated to half a mebibyte
    path = repacked(files[0]["model"], tmp_path / "bomb.npz", more=zeros)
    assert path.stat().st_size < 2**20
    assert "says that it holds 5" in check_refused_or_whole("model", path, files[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (npy((10**12,)), "says that it has shape"),
        (npy((-1, 4)), "says that it has shape"),
        (npy((2,), "|O", pickle.dumps([1, 2])), "has dtype object, expected numbers"),
        (b"\x93NUMPY\x01\x00" + b"\xff\xff" + b"(" * 65535, "no complete minilora file"),
        (b"\x93NUMPY\x09\x00", "no complete minilora file"),
        (b"", "no complete minilora file"),
        (b"{" * 100, "no complete minilora file"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_member_is_one_line(content, said, kind, files, tmp_path):
    name = next(iter(load_arrays(files[0][kind], None)[0]))
    words = check_refused_or_whole(
        kind, repacked(files[0][kind], tmp_path / "odd.npz", **{name: content or b" "}), files[1]
    )
    assert said in words


@pytest.mark.slow
@pytest.mark.parametrize("text", ["[" * 200_000, "[]", "nul", '"text"', "{", "\ud800"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_header_that_is_none_is_one_line(text, kind, files, tmp_path):
    file = io.BytesIO()
    np.save(file, np.array(text))
    assert check_refused_or_whole(
        kind, repacked(files[0][kind], tmp_path / "odd.npz", header=file.getvalue()), files[1]
    )


@pytest.mark.parametrize(
    ("kind", "place", "value"),
    [
        ("model", ("config", "n_embd"), 8192),
        ("model", ("config", "n_layer"), 200_000),
        ("model", ("config", "vocab_size"), 10**9),
        ("checkpoint", ("config", "n_embd"), 8192),
        ("checkpoint-nf4", ("config", "n_layer"), 200_000),
        ("checkpoint-nf4", ("quantization", "blocks.0.attn.q_proj", "block"), 10**9),
        ("houlsby", ("methods", 0, "config", "bottleneck"), 10**9),
        ("prompt", ("methods", 0, "config", "tokens"), 10**9),
        ("lora", ("methods", 0, "config", "rank"), 10**9),
        ("lora", ("methods", 0, "config", "rank_pattern", "v_proj"), 10**9),
        ("checkpoint", ("methods", 0, "config", "rank"), 10**9),
    ],
)
def test_a_size_that_the_file_has_not_is_refused_before_it_is_built(kind, place, value, files, tmp_path):
    """A model of 7.7 KB that says n_embd = 8192 was built, 5.2 GiB of it, before its shapes were compared."""
    arrays, header = load_arrays(files[0][kind], None)
    path = save_arrays(tmp_path / "odd.npz", arrays, with_value(header, place, value))
    assert re.search("its configuration|more than the file holds", check_refused_or_whole(kind, path, files[1]))


def test_a_configuration_counts_its_parameters():
    for bias in (True, False):
        config = ml.GPTConfig(11, 6, 3, 2, 8, bias=bias)
        assert config.count == ml.GPT(config).count()


def test_json_of_a_header_is_what_is_read(files):
    """The tests above go through `save_arrays`: its header is JSON text."""
    with zipfile.ZipFile(files[0]["model"]) as archive:
        assert json.loads(str(np.load(archive.open("header.npy"))))["kind"] == "model"

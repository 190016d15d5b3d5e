"""Files of tensors: any type and shape there and back, read lazily; damage is one line."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minilora.interop import extras
from minilora.interop.tensor_files import DTYPES, Stored, float_type, open_tensors, write_tensors


def arrays() -> dict:
    """One array of every type that the format has, and odd shapes."""
    draw = np.random.default_rng(0).normal(size=(3, 5)) * 4
    every = {name: draw.astype(float_type(name)) for name in DTYPES.values()}
    return every | {"a number": np.array(2.5), "nothing": np.zeros((0, 4), "float32")}


def test_every_type_there_and_back(tmp_path):
    """`open_tensors` reads what `write_tensors` wrote, bit for bit; and so does the library."""
    given = arrays()
    path = write_tensors(tmp_path / "a.safetensors", {n: Stored.of(a) for n, a in given.items()}, {"by": "hand"})
    found, metadata = open_tensors(path)
    assert metadata == {"by": "hand"} and found.keys() == given.keys()
    for name, array in given.items():
        assert (found[name].shape, found[name].dtype, found[name].nbytes) == (array.shape, array.dtype, array.nbytes)
        read = found[name].read()
        assert (read.dtype, read.shape, read.tobytes()) == (array.dtype, array.shape, array.tobytes())
    plain = write_tensors(tmp_path / "b.safetensors", {"x": Stored.of(np.arange(6.0).reshape(2, 3))})
    np.testing.assert_array_equal(load_file(plain)["x"], np.arange(6.0).reshape(2, 3))


def test_a_file_of_the_library_is_read_one_tensor_at_a_time(tmp_path):
    save_file(
        {"x": np.ones((2, 2), "float32"), "y": np.ones(3, ml_dtypes.bfloat16)}, path := tmp_path / "a.safetensors"
    )
    found, _ = open_tensors(path)
    assert found["y"].dtype == ml_dtypes.bfloat16 and found["y"].read().sum() == 3
    path.unlink()
    with pytest.raises(OSError, match=r"a\.safetensors"):
        found["x"].read()


@pytest.mark.parametrize("cut", [0, 5, 9, 60, -1])
def test_a_damaged_file_is_one_line(tmp_path, cut):
    path = write_tensors(tmp_path / "a.safetensors", {"x": Stored.of(np.ones(100))})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"a\.safetensors is no complete .safetensors file"):
        open_tensors(path)


def test_an_unknown_type_is_named(tmp_path):
    path = tmp_path / "a.safetensors"
    header = json.dumps({"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(ValueError, match=r"a\.safetensors(: x is of type F4| is no complete)"):
        open_tensors(path)


def test_what_fails_while_writing_leaves_nothing(tmp_path):
    wrong = Stored((2, 3), np.dtype("float32"), lambda: np.ones((2, 2), "float32"))
    with pytest.raises(ValueError, match=r"y has shape \(2, 2\), expected \(2, 3\)"):
        write_tensors(tmp_path / "a.safetensors", {"x": Stored.of(np.ones(3)), "y": wrong})
    assert not list(tmp_path.iterdir())


def test_a_library_that_is_not_there_is_named_with_what_installs_it():
    with pytest.raises(ImportError, match=r'reading needs no_such_library: pip install "minilora\[models\]"$'):
        extras.extra("no_such_library.inside", "reading")

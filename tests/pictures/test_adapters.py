"""What is drawn of adapters: titles from the numbers, every matrix in its cell, a file in the format asked for."""

import numpy as np
import pytest

from minilora.analysis import low_rank
from minilora.pictures import adapters


def rows(layers: int = 3, kinds=("attn.q_proj", "mlp.up_proj"), spectrum=(3.0, 2.0, 0.01), **more) -> list[dict]:
    """Records as the workbench measures them."""
    names = [f"model.layers.{i}.{kind}" for i in range(layers) for kind in kinds]
    s = np.array(spectrum)
    one = {"rank": len(s), "shape": [6, 5], "singular_values": s, **low_rank.describe(s)}
    return [{"name": name, **one, **more} for name in names]


def comparison(cosine: float = 0.99, ratio: float = 0.5, **how) -> dict:
    """A record as the workbench compares."""
    found = rows(cosine=cosine, norm_ratio=ratio, similarity_A=0.5, similarity_B=None, **how)
    return {"cosine": cosine, "norm_ratio": ratio, "matrices": found}


def words(figure) -> str:
    return " ".join(figure._suptitle.get_text().split())


def test_the_title_says_what_the_rank_is_worth():
    assert words(adapters.spectra(rows(), "mine")).startswith("In mine rank 3 holds what rank 2 would: 99 %; ")
    assert words(adapters.spectra(rows(spectrum=(1.0, 1.0)), "mine")).startswith("In mine rank 2 is used in full; ")
    assert words(adapters.spectra(rows(1, ("wte",)), "mine")) == "In mine rank 3 holds what rank 2 would: 99 %"
    assert words(adapters.comparison(comparison())).endswith("the same direction, half the size: cosine 0.99")


@pytest.mark.slow
def test_a_line_a_layer_and_a_cell_a_matrix():
    """Layers in their order, kinds in theirs; a log axis where the values span more than a decade."""
    figure = adapters.spectra([*rows(), *rows(1, ("lm_head",))[:1]], "mine")
    left, right = figure.axes[:2]
    assert len(left.lines) == 3 and left.get_yscale() == "log"
    cells = right.images[0].get_array()
    assert cells.shape == (3, 3) and cells.mask.sum() == 2  # lm_head is in one layer
    assert adapters.spectra(rows(spectrum=(2.0, 1.0)), "mine").axes[0].get_yscale() == "linear"
    adapters.spectra(
        [*rows(), {**rows(1)[0], "name": "head", "singular_values": np.zeros(3), "frobenius_norm": 0.0}], "x"
    )


def test_a_cosine_a_cell_and_what_is_shared():
    figure = adapters.comparison(comparison(-0.5))
    left, right = figure.axes[:2]
    assert np.all(left.images[0].get_array() == -0.5)
    shared = [line.get_ydata() for line in right.lines]
    assert np.all(shared[0] == 0.5) and np.ma.getmaskarray(shared[1]).all()  # None: one side was zero


@pytest.mark.slow
@pytest.mark.parametrize("ending", adapters.FORMATS)
def test_a_picture_in_the_format_of_its_ending(tmp_path, ending):
    """Twice the same bytes."""
    drawn = (adapters.save_one(adapters.spectra(rows(2), "mine"), tmp_path / f"{i}{ending}") for i in (1, 2))
    first, second = (path.read_bytes() for path in drawn)
    assert first[:4] == {".png": b"\x89PNG", ".svg": b"<?xm", ".pdf": b"%PDF"}[ending]
    assert first == second or ending == ".pdf"


def test_many_layers_have_few_ticks():
    places, names = adapters.ticks([f"model.layers.{i}" for i in range(80)])
    assert places == list(range(0, 80, 8)) and names[1] == "8"
    assert adapters.ticks(["lora_unet_down_blocks_0", "other"])[1] == ["0", "other"]

"""Learning rates: the pictures say by how much, and with what interval, or that nothing is clear."""

import numpy as np
import pytest
from matplotlib.text import Text

from minilora.pictures.figures import CAPTIONS
from minilora.pictures.rates import scaling


def moved(**powers):
    """A change of rows: a convention's best rate is as r^power, and full fine-tuning's is 2.5e-3 `times` that."""

    def change(row):
        power, times = powers.get(row["kind"].replace("/", "_")), powers.get("times", 1.0)
        best = (
            1e-2 * (row["rank"] / 8) ** power if power is not None else 2.5e-3 * times if row["kind"] == "full" else 0
        )
        if best:
            off = (0.95, 1, 1.05) if row["kind"] != "full" else (1, 1, 1)
            row["curves"] = [[3.0, 1 + 0.2 * np.log(row["lr"] / (best * each)) ** 2] for each in off]
            row["loss"] = float(np.mean([curve[-1] for curve in row["curves"]]))

    return change


def test_rates_are_compared_with_an_interval_over_the_seeds(title, figure_of):
    assert title("rates") == "LoRA's best learning rate is 4 (3.8 to 4.2) times full fine-tuning's"
    assert title("rates", moved(times=1.6)) == "LoRA's best learning rate is 2.5 (2.4 to 2.6) times full fine-tuning's"
    assert (
        title("rates", moved(times=16)) == "LoRA's best learning rate is 0.25 (0.24 to 0.26) times full fine-tuning's"
    )
    assert title("rates", moved(times=4)).startswith("No clear difference between the best rates")
    assert "between 4 and 4 times full's" in figure_of("rates").get_label()
    assert "end of its sweep" not in figure_of("rates").get_label()
    low = lambda row: row.update(curves=[[3.0, row["lr"]]] * 3, loss=row["lr"]) if row["kind"] == "full" else None
    assert "end of its sweep: the optimum may lie beyond" in figure_of("rates", low).get_label()


def test_the_band_of_the_best_rate_reaches_from_the_least_to_the_most(figure_of):
    (axes,) = figure_of("rates").axes
    lora, full = (patch.get_extents().transformed(axes.transData.inverted()) for patch in axes.patches)
    assert (lora.x0, lora.x1) == pytest.approx((0.95e-2, 1.05e-2), rel=1e-6)
    assert full.x0 == pytest.approx(full.x1) == pytest.approx(2.5e-3, rel=1e-6)


def test_scaling_says_under_which_convention_the_best_rate_stays(title, figure_of):
    assert title("scaling").replace("\N{NO-BREAK SPACE}", " ") == (
        "From r = 1 to 64 the best rate: same (α constant), ÷8 (α = 2r)"
    )
    said = figure_of("scaling").get_label()
    assert "+0.00 (+0.00 to +0.00) with α constant and -0.50" in said and "α constant keeps it most nearly" in said
    contrary = figure_of("scaling", moved(alpha=0.5, alpha_r=0.0))
    assert "×8 (α constant), same (α = 2r)" in contrary.get_label()
    assert "α = 2r keeps it most nearly" in contrary.get_label()
    alike = figure_of("scaling", moved(alpha=0.0, alpha_r=0.0))
    assert alike.get_label().startswith("From r = 1 to 64 the best rate: same (α constant, α = 2r).")
    assert "neither clearly keeps it better" in alike.get_label() and "neither ends clearly lower" in alike.get_label()


def test_scaling_of_three_conventions_says_none_and_lowest(records):
    """A third one stands between the two: rsLoRA's best rate is as r^-1/4."""

    def of_three(change):
        rows = records("rates")["rows"]
        third = [{**row, "kind": "rsLoRA"} for row in rows if row["kind"] == "alpha"]
        for row in third:
            change(row)
        return scaling({**records("rates"), "rows": rows + third})

    figure = of_three(moved(rsLoRA=-0.25))
    said = figure.get_label().replace("\N{NO-BREAK SPACE}", " ")
    assert "same (α constant), ÷8 (α = 2r), ÷2.8 (rsLoRA)" in said
    assert "α constant keeps it most nearly" in said and "α constant ends lowest" in said
    assert "rsLoRA" in CAPTIONS["scaling"] and "rsLoRA" in [text.get_text() for text in figure.axes[0].texts]
    same = of_three(moved(rsLoRA=0.0)).get_label()
    assert "none clearly keeps it better" in same and "none ends clearly lowest" in same


def test_scaling_says_nothing_about_ranks_where_one_was_looked_at(records):
    rows = records("rates")["rows"]
    figure = scaling({**records("rates"), "rows": [row for row in rows if row["rank"] == 8]})
    assert figure.get_suptitle() == "One rank alone was looked at on this text"


def test_scaling_draws_the_loss_tuned_and_at_one_rate_and_says_what_that_costs(figure_of):
    figure = figure_of("scaling")
    left, right = figure.axes
    heights = [float(y) for line in right.lines for y in np.atleast_1d(line.get_ydata())]
    cost = 0.2 * (np.log(8) / 2) ** 2  # r^-0.5 over a factor of 8 in r, in the parabolas above
    assert max(heights) == pytest.approx(1 + cost, abs=0.05) and min(heights) == pytest.approx(1, abs=0.02)
    assert f"costs up to 0.00 with α constant and {cost:.1f}" in figure.get_label()
    lower = lambda row: row.update(curves=[[3.0, c[-1] - 0.5] for c in row["curves"]], loss=row["loss"] - 0.5)
    change = lambda row: lower(row) if row["kind"] == "alpha/r" else None
    assert "Tuned at r = 64, α = 2r ends lower, 0.5" in figure_of("scaling", change).get_label()
    words = " ".join(text.get_text() for text in left.findobj(Text))
    assert all(word in words for word in ("α constant", "α = 2r"))


def test_a_rate_at_which_training_went_astray_is_shown_as_such(figure_of):
    astray = lambda row: row.update(loss=float("nan")) if row["lr"] > 0.08 and row["kind"] == "alpha" else None
    words = [text.get_text() for text in figure_of("rates", astray).findobj(Text)]
    assert words.count("↑ ∞") == 1

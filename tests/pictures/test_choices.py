"""What to choose: the titles say what the records say, and runs that went astray are shown as such."""

from matplotlib.text import Text


def test_matrices_and_ranks_name_the_best_and_its_equals(title, wide):
    assert title("matrices") == "Adapting all is clearly best on each text"
    v = lambda row: row.update(loss=1.41) if row["targets"] == "v" else None
    assert title("matrices", v) == "Best are v and all on each text"
    assert title("matrices", wide) == "No clear difference between the sets on each text"
    assert title("ranks") == "Rank 4 is enough on each text"
    assert title("ranks", lambda row: row.update(loss=3.0) if row["rank"] > 2 else None).startswith("Rank 2 is clearly")
    assert title("ranks", wide) == "No rank is clearly better than 1 on each text"
    turn = lambda row: row.update(loss=1.0 + abs(row["rank"] - 2) / 10) if row["rank"] != 4 else row.update(loss=1.01)
    assert title("ranks", turn) == "Rank 2 is enough, beyond 4 is worse on each text"


def test_rates_compare_the_optima(title, figure_of, wide):
    assert title("rates") == "LoRA wants a learning rate about 10 times larger than full fine-tuning"
    other = {"full": "r=8, alpha/r", "r=8, alpha/r": "full"}
    assert "10 times smaller" in title("rates", lambda row: row.update(kind=other.get(row["kind"], row["kind"])))
    assert "share a good learning rate" in title("rates", wide)
    assert "moves from 0.03 to 0.003 with α/r; does not clearly move with α/√r" in title("scaling")
    assert "does not clearly move with either scaling" in title("scaling", wide)
    assert "end of the sweep" in figure_of("rates").get_label()  # full fine-tuning's best is the least rate


def test_a_run_that_went_astray_is_shown_as_such(figure_of):
    astray = lambda row: row.update(loss=float("nan")) if row["lr"] == 3e-2 and row["kind"] != "full" else None
    words = [text.get_text() for text in figure_of("rates", astray).findobj(Text)]
    assert words.count("↑ ∞") == 1
    far = lambda row: row.update(loss=50.0) if row["rank"] == 1 else None
    figure = figure_of("ranks", far)
    assert [text.get_text() for text in figure.findobj(Text)].count("↑ 50.0") == 2
    assert all(axes.get_ylim()[1] < 5 for axes in figure.axes)


def test_starts_tell_which_of_them_learn(title):
    assert title("starts") == (
        "Both zero: no gradient, nothing is learned. Both random: starts 1.00 nats above the base model"
    )
    assert "something is learned" in title("starts", lambda row: row.update(gradient_B=1.0))

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


def test_a_run_that_went_astray_is_shown_as_such(figure_of):
    far = lambda row: row.update(loss=50.0) if row["rank"] == 1 else None
    figure = figure_of("ranks", far)
    assert [text.get_text() for text in figure.findobj(Text)].count("↑ 50.0") == 2
    assert all(axes.get_ylim()[1] < 5 for axes in figure.axes)


def test_starts_tell_which_of_them_learn(title):
    assert title("starts") == (
        "Both zero: no gradient, nothing is learned. Both random: starts 1.00 nats above the base model"
    )
    assert "something is learned" in title("starts", lambda row: row.update(gradient_B=1.0))

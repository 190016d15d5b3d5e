"""The capstone: what may be handed in, what is refused and why, hidden pages, and the leaderboard."""

import json
from pathlib import Path

import pytest

from minilora.commands.main import main
from minilora.homework import capstone as cap
from minilora.training.corpus import BUILT_IN

RECIPE = {
    "model": "base",
    "method": "lora",
    "options": {"rank": 2, "target_modules": ["q_proj"]},
    "settings": {"steps": 2, "batch_size": 2, "lr": 0.003},
}
PYTHON = BUILT_IN["python-code"]


def hand_in(folder, student, text, recipe):
    """A student's two files."""
    (folder / student).mkdir(parents=True)
    (folder / student / "text.txt").write_text(text)
    (folder / student / "recipe.json").write_text(recipe if isinstance(recipe, str) else json.dumps(recipe))


@pytest.mark.slow
def test_from_two_files_to_a_leaderboard(tmp_path, monkeypatch, capsys):
    """Two are graded, each cheat has a line that says why not, and nothing is trained twice."""
    monkeypatch.setitem(cap.BUDGETS, "base", cap.Budget(3_000, 2_048, 1e-3))
    text, folder = PYTHON()[:40_000], tmp_path / "in"
    hand_in(folder, "ada", text, RECIPE)
    hand_in(folder, "bob", text, {**RECIPE, "options": {"rank": 2, "target_modules": ["v_proj"]}})
    hand_in(folder, "cyd", text, {**RECIPE, "options": {"rank": 100}})
    hand_in(folder, "dan", text, {**RECIPE, "settings": {"steps": 500}})
    hand_in(folder, "eve", "the same line again\n" * 2_000, RECIPE)
    (folder / "fay").mkdir()
    (folder / "fay/text.txt").symlink_to(folder / "ada/text.txt")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/seed.txt").write_text("0\n")  # some secret seeds hide pages that this text has twice
    argv = ["homework", "capstone", str(folder), "--output", str(tmp_path / "out")]
    assert main(argv) == 1
    said = capsys.readouterr().out.splitlines()
    assert {said[1].split()[1], said[2].split()[1]} == {"ada", "bob"} and "%" in said[1] and "2,048" in said[1]
    for student, why in {
        "cyd": "parameters, the budget is 3,000",
        "dan": "500 steps of 8 x 128 tokens read 512,000, the budget is 2,048",
        "eve": "it repeats itself",
        "fay": "text.txt is a symbolic link, expected a file",
    }.items():
        (line,) = (line for line in said if f"  {student}  " in line)
        assert "not graded" in line and why in line
    table = (tmp_path / "out/capstone/leaderboard.md").read_text().splitlines()
    assert len(table) == 8 and all(line.count("|") == 11 for line in table)

    monkeypatch.setattr(cap, "graded", lambda *_: pytest.fail("trained again"))
    for student in ("cyd", "dan", "eve", "fay"):
        for file in (folder / student).iterdir():
            file.unlink()
    assert main(argv) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == said[1].split()[:3]


def test_hidden_pages_are_the_seeds_and_in_neither_part_twice():
    text = PYTHON()[:30_500]
    public, hidden = cap.split(text, 1)
    assert len(public) + len(hidden) == len(text) and len(hidden) in (6_000, 5_500)
    assert cap.split(text, 1) == (public, hidden) != cap.split(text, 2)
    pages = [hidden[n : n + cap.PAGE] for n in range(0, 5_000, cap.PAGE)]
    assert all(page in text and page not in public for page in pages)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("short", "text.txt has 5 characters, expected 20,000 to 5,000,000"),
        ("again and again\n" * 3_000, "it repeats itself"),
        ("".join(f"line {n} of this text says {n * 7919 % 1000}\n" for n in range(3_000)), "repeats itself"),
        (PYTHON()[:15_000] * 3, "repeats itself"),
    ],
)
def test_a_text_that_is_no_test_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        cap.split(text, 0)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("{", "recipe.json is no JSON"),
        ("[]", "recipe.json has list, expected"),
        ({**RECIPE, "adapter": "mine.npz"}, "'adapter'"),
        ({**RECIPE, "model": "gpt4"}, "model is 'gpt4', expected one of base, smollm2-135m"),
        ({**RECIPE, "method": "magic"}, "method is 'magic', expected one of"),
        ({**RECIPE, "options": [1]}, r"options is \[1\], expected a dict"),
        ({**RECIPE, "options": {"rank": 10**9}}, "rank is 1,000,000,000, expected at most 4,096"),
        ({**RECIPE, "settings": {"window": 4096}}, "'window', which is not free"),
        ({**RECIPE, "settings": {"accumulate": 99}}, "'accumulate', which is not free"),
    ],
)
def test_a_recipe_that_is_none_is_refused(recipe, said):
    with pytest.raises(ValueError, match=said):
        cap.read_recipe(recipe if isinstance(recipe, str) else json.dumps(recipe))


def test_the_share_is_of_what_full_fine_tuning_gains():
    entry = cap.Entry("ada", base=3.0, adapted=2.25, full=2.0)
    assert entry.share == 0.75 and entry.gain == 0.25
    assert cap.Entry("bob", base=3.0, adapted=2.25).share is None
    assert cap.Entry("cyd", base=2.0, adapted=2.0, full=2.1).share is None  # full fine-tuning only did harm


def test_where_there_is_nothing_to_grade_it_says_what_it_wants(tmp_path, capsys):
    assert main(["homework", "capstone", str(tmp_path)]) == 2
    assert "no text.txt and recipe.json in" in capsys.readouterr().err
    assert main(["homework", "capstone", str(tmp_path), "--isolate"]) == 2
    assert "--isolate cannot be given with capstone" in capsys.readouterr().err


def test_the_recipe_that_is_handed_out_is_one():
    place = Path(__file__).parents[1] / "notebooks/homework/capstone"
    text = (place / "recipe.json").read_text()
    assert cap.read_recipe(text) and text in (place / "capstone.md").read_text()

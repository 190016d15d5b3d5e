"""The study of rewards: its rule, its examples, and what a run's record holds."""

from dataclasses import replace

import numpy as np
import pytest

import minilora as ml
from minilora.studies import rewards
from minilora.studies.rewards import RewardRuns, examples_of, judge, reward
from minilora.studies.runs import QUICK, Runs, Spec

TINY = replace(QUICK, name="tiny", steps=2, batch_size=2, windows=2)


def test_the_rule_asks_for_a_word_in_a_whole_name():
    assert [reward(name) for name in ("A WITH B\n", "A WITH B", "AWITH B\n", "A WITH\n", "\n")] == [1, 0, 0, 0, 0]


def test_examples_are_whole_names_that_the_rule_rewards():
    long = f"A WITH {'B' * 40}"
    examples = examples_of(f"LETTER A\nA WITH DOT\n{long}\nB WITH HOOK")
    said = [(ml.decode(tokens), ml.decode(targets)) for tokens, targets in examples.train]
    assert said == [("\nA WITH DOT", "A WITH DOT\n"), ("\nB WITH HOOK", "B WITH HOOK\n")]


@pytest.fixture(scope="module")
def learners(tmp_path_factory):
    return RewardRuns(Runs(tmp_path_factory.mktemp("runs"), TINY, progress=False))


def test_a_rate_that_the_first_seed_alone_likes_is_not_chosen(tmp_path, monkeypatch):
    """At 1e-2 one seed of three comes through; what was told of 3e-3, where all do, was the first seed alone."""

    def record(self, spec):
        lucky = spec.seed == 0 or spec.lr < 1e-2
        share = {1e-3: 0.1, 3e-3: 0.8, 1e-2: 0.9 * lucky}.get(spec.lr, 0.0)
        taken.append((spec.way, spec.lr, spec.seed))
        told = {"names": [], "trainable": 1, "before": 0.0, "different": 1.0, "base_loss": 1.0, "loss": 1.0}
        return {"spec": vars(spec), "reward": share, "curve": {"step": [0, 2], "reward": [0.0, share]}, **told}

    taken: list = []
    monkeypatch.setattr(RewardRuns, "record", record)
    monkeypatch.setattr(RewardRuns, "file", lambda self, spec: tmp_path)
    monkeypatch.setattr(rewards, "SIZES", {"r=1": {"rank": 1}})
    rows = rewards.study_rewards(Runs(tmp_path, replace(TINY, seeds=(0, 1, 2)), progress=False))
    assert [(row["way"], row["lr"]) for row in rows] == [("rewards", 3e-3), ("examples", 3e-3)]
    assert all(row["reward"] == pytest.approx(0.8) and row["rates"]["0.01"] == 0.9 for row in rows)
    assert {lr for way, lr, seed in taken if seed} == {3e-3, 1e-2}  # the two best, with every seed


@pytest.mark.slow
@pytest.mark.parametrize("way", rewards.WAYS)
def test_a_record_holds_what_can_be_computed_otherwise(learners, way, monkeypatch):
    spec = learners.spec_of(way, "one matrix", 1e-2, 0)
    record = learners.record(spec)
    assert record["trainable"] == 512 + 128 and record["curve"]["step"] == [0, 1, 2]
    base = ml.load_model(learners.base)
    assert record["base_loss"] == ml.evaluate(base, ml.load_corpus("unicode-names"), TINY.windows)
    assert record["curve"]["reward"][0] == record["before"] == judge(base, learners.judged)["reward"]
    assert record["curve"]["reward"][-1] == record["reward"] and len(record["names"]) == rewards.SHOWN
    assert 0 <= record["reward"] <= 1 and 0 < record["different"] <= 1
    monkeypatch.setattr(RewardRuns, "_train", lambda *_: pytest.fail("a finished run was trained again"))
    assert learners.record(spec) == record
    assert spec.key != replace(spec, way="neither").key != Spec().key != replace(spec, base="").key


@pytest.mark.slow
def test_each_way_trains_what_it_says_and_the_rest_stays(learners):
    """All names are rewarded that end, so that both ways move the one matrix that they may."""
    for way in rewards.WAYS:
        spec = learners.spec_of(way, "one matrix", 1e-2, 0)
        model = ml.load_model(learners.base)
        rewards.prepare(model, spec)
        before = model.state_dict()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rewards, "reward", lambda name: float(len(name)))
            steps = list(rewards.learning(model, spec, examples_of("A WITH DOT\nB WITH HOOK")))
        moved = {name for name, value in model.state_dict().items() if not np.array_equal(before[name], value)}
        assert steps == [1, 2] and moved == {f"blocks.3.mlp.down_proj.lora_{part}" for part in "AB"}

"""Batch size: each size sees as much text, and a method's gap is to full fine-tuning on the same batches."""

from minilora.studies import batches
from minilora.studies.runs import FULL, QUICK, Spec


class Told:
    """Runs without training: the loss tells the method, the batch and the seed."""

    def __init__(self, scale):
        self.scale, self.taken = scale, []

    def spec(self, **changes):
        return Spec(**{"steps": self.scale.steps, "batch_size": self.scale.batch_size, **changes})

    def record(self, spec):
        self.taken.append(spec)
        off = abs(spec.lr - 0.01)
        loss = 1 + off + 0.1 * spec.seed + (0.0 if spec.method == "full" else spec.batch_size / 100)
        return {"loss": loss, "old_loss": 1.0, "trainable": 1, "spec": {"lr": spec.lr}}

    def records(self, specs):
        return [self.record(spec) for spec in specs]


def test_each_size_sees_as_many_windows_and_one_has_few_steps():
    rows = batches.study_batches(Told(FULL))
    seen = {(row["batch_size"], row["steps"]) for row in rows}
    assert seen == {(1, 768), (4, 192), (16, 48), (64, 12), (8, 12)}
    assert {row["method"] for row in rows} == set(batches.METHODS) and all(row["seeds"] == 3 for row in rows)
    assert {row["corpus"] for row in rows} == set(FULL.corpora) and len(rows) == 2 * 5 * 3


def test_a_gap_is_between_runs_of_one_seed():
    rows = batches.study_batches(Told(FULL))
    for row in rows:
        wanted = 0 if row["method"] == "full" else row["batch_size"] / 100
        assert abs(row["gap"] - wanted) < 0.01 and row["gap_spread"] < 1e-9 < row["loss_spread"]


def test_the_quick_form_has_few_sizes():
    rows = batches.study_batches(Told(QUICK))
    assert {(row["batch_size"], row["steps"]) for row in rows} == {(4, 40), (16, 10), (8, 10)}

"""The study of a segmenter: what a record holds, on a small segmenter in the place of the shipped one."""

from dataclasses import replace

import numpy as np
import pytest

import minilora as ml
from minilora.nn.segmenter import Segmenter, SegmenterConfig
from minilora.studies import segments
from minilora.studies.runs import QUICK, Runs
from minilora.studies.studies import load_records, run_study

TINY = replace(QUICK, name="tiny", steps=2, windows=3)
SMALL = SegmenterConfig(size=48, patch=12, width=8, layers=1, decoder_layers=1, heads=2, features=8, window=3)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(segments, "load_segmenter", lambda: Segmenter(SMALL))


def test_what_each_method_trains():
    names = {method: set() for method in segments.METHODS}
    for method in names:
        model = segments.trainable(Segmenter(SMALL), replace(segments.SegmentSpec(), method=method, rank=2))
        names[method] = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names["full"] == {name for name, _ in Segmenter(SMALL).named_parameters()}
    assert names["head"] < names["full"] and "patch_up.weight" in names["head"]
    assert not any("blocks" in name or "decoder" in name for name in names["head"])
    assert names["last blocks"] == {name for name in names["full"] if name.startswith("decoder.")}
    assert all(name.endswith(("lora_A", "lora_B")) for name in names["LoRA"]) and len(names["LoRA"]) == 2 * 19


@pytest.mark.slow
def test_the_study_runs_and_a_row_holds_what_can_be_computed_otherwise(tiny, tmp_path, monkeypatch):
    run_study("segments", TINY, tmp_path, tmp_path / "runs", progress=False)
    rows = load_records("segments", tmp_path)["rows"]
    told = [(row["kind"], row["corpus"], row["method"], row["examples"]) for row in rows]
    assert told[:8] == [("methods", "cracks", method, n) for method in segments.METHODS for n in (8, 64)]
    assert told[8:] == [("tasks", task, "LoRA", 64) for task in segments.TASKS]
    row = rows[-1]
    assert row["curve"]["step"] == [0, 1, 2] and row["curve"]["loss"][0] == row["before"]
    base, new, old = Segmenter(SMALL), segments.held_out("cracks", 0, 3), segments.held_out("shapes", 0, 3)
    assert row["before"] == segments.error(base, new) and row["old_before"] == segments.error(base, old)
    assert row["before"] == pytest.approx(1 - np.mean(segments.iou(base, new)), abs=1e-5)
    image = segments.seen(row["shown"]["image"], 48)
    np.testing.assert_allclose(image, new.images[0], atol=0.5 / 255 + 1e-6)
    np.testing.assert_array_equal(segments.seen(row["shown"]["truth"], 48), new.masks[0])
    before = base.segment(new.images[0], point=row["shown"]["point"])
    np.testing.assert_array_equal(segments.seen(row["shown"]["before"], 48), before)
    assert [one["corpus"] for one in rows if "shown" in one] == ["plates", "characters", "cracks"]
    assert row["box_before"] == segments.error(base, new, "box")
    monkeypatch.setattr(segments.SegmentRuns, "_train", lambda *_: pytest.fail("a finished run was trained again"))
    run_study("segments", TINY, tmp_path / "again", tmp_path / "runs", progress=False)
    assert load_records("segments", tmp_path / "again")["rows"] == rows


def test_the_same_spec_is_the_same_run_and_scenes_are_kept_apart(tiny, tmp_path):
    spec = replace(segments.SegmentSpec(), steps=1, examples=4)
    runs = segments.SegmentRuns(Runs(tmp_path, TINY, progress=False))
    assert runs._train(spec)[0] == runs._train(spec)[0] != runs._train(replace(spec, seed=1))[0]
    told, choice = segments.held_out("cracks", 0, 3), segments.held_out("cracks", 1, 3)
    assert not np.array_equal(told.masks, choice.masks)


def test_the_quick_form_takes_the_first_rate_and_the_shipped_base(tmp_path):
    model = ml.nn.segmenter.load_segmenter()
    assert model.config == SegmenterConfig() and segments.held_out("cracks", 0, 3).images.shape[1] == model.config.size

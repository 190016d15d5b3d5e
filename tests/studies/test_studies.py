"""The studies: finished runs are kept and shared, records say what made them, and every study runs to its end."""

import json
import platform
import signal
from dataclasses import make_dataclass, replace
from functools import partial

import numpy as np
import pytest

import minilora as ml
from minilora.analysis.methods import RANKED, plan
from minilora.studies import alternatives, costs_of_steps, runs, style, turns
from minilora.studies.real import RealSpec
from minilora.studies.runs import FULL, QUICK, Runs, Spec, base_model, prepare
from minilora.studies.studies import NEEDS, STUDIES, load_records, run_study
from minilora.studies.turns import take_turns
from minilora.training import backward, loop
from minilora.training.diffusion import draw_letters

TINY = replace(QUICK, name="tiny", steps=2, batch_size=2, windows=2, ranks=(1, 8, 64), learning_rates=(1e-3, 1e-2))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def test_equal_specs_have_equal_keys_and_different_ones_different():
    assert Spec().key == Spec().key
    changed = [Spec(rank=4), Spec(lr=1e-3), Spec(seed=1), Spec(targets=("q_proj",)), Spec(characters=10)]
    assert len({spec.key for spec in [Spec(), *changed]}) == 6
    later = make_dataclass("Spec", [("pull", float, 0.0)], bases=(Spec,), frozen=True)  # a field that came afterwards
    assert later(rank=4).key == Spec(rank=4).key != later(rank=4, pull=1.0).key
    assert replace(RealSpec(), lr=1e-2, steps=100).key != Spec().key


@pytest.mark.slow
def test_looks_on_the_way_change_nothing_and_are_what_train_measures(tmp_path):
    few, many = (Runs(tmp_path, TINY, progress=False).record(Spec(steps=4, batch_size=2, looks=n)) for n in (1, 4))
    assert few["curve"]["step"] == [0, 4] and many["curve"]["step"] == [0, 1, 2, 3, 4]
    assert [few[name] for name in ("loss", "old_loss")] == [many[name] for name in ("loss", "old_loss")]
    model = ml.add_lora(ml.load_model("base"), ml.LoRAConfig(8, 16.0, runs.ALL))
    wanted = ml.Settings(4, 2, 1e-2, warmup=1, evaluate_every=1, evaluation_windows=TINY.windows)
    run = ml.train(ml.Run(model, "unicode-names", wanted), progress=False)
    assert many["curve"]["loss"] == run.validation["loss"]
    assert many["old_loss"] == round(ml.evaluate(model, "python-docs", TINY.windows), 5)


@pytest.mark.slow
def test_a_pull_moves_the_weights_a_share_of_the_way_back_to_where_they_began():
    """w - lr pull (w - w_0), after each step, at that step's rate; with lr pull = 1 nothing is left of the step."""
    new = lambda: ml.Run(ml.load_model("base"), "unicode-names", ml.Settings(3, 2, 1e-2, warmup=1, window=16))
    pulled, by_hand = new(), new()
    began = [p.data.copy() for p in pulled.optimizer.parameters]
    steps, free = runs.trained(pulled, 3, 20.0), runs.trained(by_hand, 3)
    for step in range(4):
        assert next(steps) == next(free) == step
        if step:
            for p, w_0 in zip(by_hand.optimizer.parameters, began, strict=True):
                p.data[...] = p.data - by_hand.optimizer.lr * 20 * (p.data - w_0)
                p.changed()
        pairs = zip(pulled.optimizer.parameters, by_hand.optimizer.parameters, strict=True)
        assert all(np.array_equal(p.data, q.data) for p, q in pairs)
    assert not np.allclose(pulled.model.wte.weight.data, began[0], rtol=0, atol=1e-3)
    pulled.optimizer.lr = 0.5
    runs.pull_back(pulled.optimizer, began, 2.0)
    assert all(np.allclose(p.data, w, atol=1e-6) for p, w in zip(pulled.optimizer.parameters, began, strict=True))


@pytest.mark.slow
def test_a_run_is_trained_once_and_the_same_spec_gives_the_same_numbers(cache, tmp_path, monkeypatch):
    kept = Runs(cache, TINY, progress=False)
    spec = kept.spec(rank=2)
    first = kept.record(spec)
    again = Runs(tmp_path, TINY, progress=False).record(spec)  # another folder: trained anew
    for number in ("loss", "old_loss", "before", "curve", "trainable", "stored_bytes"):
        assert first[number] == again[number]
    monkeypatch.setattr(Runs, "_train", lambda *_: pytest.fail("a finished run was trained again"))
    assert kept.record(spec) == first


@pytest.mark.slow
def test_a_record_holds_what_can_be_computed_otherwise(cache):
    kept = Runs(cache, TINY, progress=False)
    record = kept.record(kept.spec(rank=2, keep=True))
    model = kept.model(kept.spec(rank=2, keep=True))
    assert record["loss"] == pytest.approx(ml.evaluate(model, ml.load_corpus("unicode-names"), TINY.windows), abs=1e-6)
    assert record["trainable"] == 4 * 2 * (4 * 256 + 2 * 640)  # layers x rank x (d_in + d_out of the six matrices)
    assert record["stored_bytes"] == 4 * record["trainable"]


@pytest.mark.slow
def test_a_record_says_which_pythons_text_it_read(cache, tmp_path):
    """The built-in corpora are the standard library's; a run that an older one trained and kept is told as well."""
    kept = Runs(cache, TINY, progress=False)
    spec = kept.spec(rank=2)
    record, here = kept.record(spec), platform.python_version()
    assert record["python"] == here and kept.pythons == {here}
    for python, told in (("3.11.0", "3.11.0"), (None, "unknown")):
        other = Runs(tmp_path, TINY, progress=False)
        runs.write_json(other.folder / f"{spec.key}.json", {k: v for k, v in {**record, "python": python}.items() if v})
        other.record(spec)
        assert other.pythons == {here, told}


def test_measuring_a_step_does_not_move_the_model(cache):
    model = ml.load_model("base")
    before = model.state_dict()
    run = ml.Run(model, ml.load_corpus("unicode-names"), ml.Settings(steps=2, batch_size=2))
    costs_of_steps._probe(run)()
    assert all(np.array_equal(before[name], p.numpy()) for name, p in model.named_parameters())


@pytest.mark.slow
def test_costs_of_a_step(cache, monkeypatch):
    monkeypatch.setattr(backward, "cores", lambda: 1)  # threads do not always meet at their peaks
    specs = {"full": Spec(method="full"), "lora": Spec()}
    costs = costs_of_steps.measure_steps(Runs(cache, TINY, progress=False), specs, repeats=1)
    assert all(cost["step_seconds"] > 0 for cost in costs.values())
    assert costs["full"]["step_ratio"] == 1
    saved = costs["full"]["memory_bytes"] - costs["lora"]["memory_bytes"]
    assert saved > 6 * (822_016 - 2 * 73_728)  # AdamW's moments are 8 bytes for each parameter; gradients are 4


@pytest.mark.slow
def test_the_three_starts():
    base = ml.load_model("base")
    tokens, targets = ml.load_corpus("unicode-names").validation_windows(128, 2)
    reference = base.loss(tokens, targets).item()
    losses = {}
    for start in ("lora", "both zero", "both random"):
        model = ml.load_model("base")
        prepare(model, Spec(start=start))
        loss = model.loss(tokens, targets)
        losses[start] = loss.item()
        gradients = {m: ml.grad(loss, _part(model, f"lora_{m}"), retain_graph=True) for m in "AB"}
        norm = {m: float(sum((g * g).sum() for g in gradients[m])) for m in "AB"}
        assert (norm["A"] > 0) == (start == "both random")
        assert (norm["B"] > 0) == (start != "both zero")
    assert losses["lora"] == losses["both zero"] == reference
    assert losses["both random"] != reference


def _part(model, name):
    return [p for full, p in model.named_parameters() if full.endswith(name)]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in STUDIES if name not in NEEDS])
def test_every_study_runs_and_its_records_load(name, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "take_turns", lambda calls, many, strangers: take_turns(calls, 2, strangers))
    monkeypatch.setattr(style, "draw_letters", partial(draw_letters, steps=2))  # all one here
    path = run_study(name, TINY, tmp_path, cache, progress=False)
    records = load_records(name, tmp_path)
    assert records["study"] == name and records["scale"]["steps"] == 2 and records["question"]
    assert records["python"] == [platform.python_version()]
    numbers = [v for row in records["rows"] for v in row.values() if isinstance(v, float)]
    assert numbers and np.isfinite(numbers).all()
    before = path.read_bytes()
    with pytest.raises(ValueError, match="is there already; --force"):
        run_study(name, TINY, tmp_path, cache, progress=False)
    assert path.read_bytes() == before


@pytest.mark.slow
def test_what_the_truncation_study_must_find_whatever_was_learned(cache, tmp_path):
    run_study("truncation", TINY, tmp_path, cache, progress=False)
    rows = {(row["method"], row["rank"]): row["loss"] for row in load_records("truncation", tmp_path)["rows"]}
    kept = Runs(cache, TINY, progress=False)
    full = kept.record(kept.spec(method="full", lr=runs.best_rate(kept, "full", "unicode-names"), keep=True))
    assert rows["truncated", 128] == pytest.approx(full["loss"], abs=1e-4)  # nothing cut off: full fine-tuning itself


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="no study 'rank'; there are methods, "):
        run_study("rank", TINY, tmp_path, tmp_path)
    with pytest.raises(FileNotFoundError, match="`minilora study ranks` makes them"):
        load_records("ranks", tmp_path)
    (tmp_path / "ranks.json").write_text('{"format": 1, "rows": [')
    with pytest.raises(ValueError, match="cut short"):
        load_records("ranks", tmp_path)
    (tmp_path / "ranks.json").write_text(json.dumps({"format": 0, "rows": [{}]}))
    with pytest.raises(ValueError, match="format 0"):
        load_records("ranks", tmp_path)
    with pytest.raises(ValueError, match=r"method = .dore.; there are .*lora, "):
        prepare(ml.load_model("base"), Spec(method="dore"))


@pytest.mark.parametrize("name", alternatives.COMPARED)
def test_what_a_compared_method_trains_is_what_count_says(name):
    spec = Spec(**alternatives.COMPARED[name])
    model = base_model(spec)
    prepare(model, spec)
    sizes = {"rank": spec.rank, "target_modules": spec.targets} if spec.method in RANKED else {}
    options = {key: value for key, value in spec.options.items() if key not in ("init", "hidden")}
    chosen = plan("base", spec.method, **sizes, **options)
    trained = {n: p.shape for n, p in model.named_parameters() if p.requires_grad}
    if name != "prefix-mlp":  # while it trains, a network makes the prefix
        assert trained == chosen.trainable
    budget = sum(np.prod(shape) for shape in chosen.trainable.values())
    if name not in ("full", "lora", "last-blocks", "bitfit", "prompt", "vera", "ia3"):
        assert abs(budget / 16_384 - 1) < 0.13


def test_a_token_is_timed_after_the_same_cache_every_time():
    model = ml.load_model("base")
    lengths = []
    call = alternatives._token_calls(model, 2, 5)

    class Watch(type(model.ln_f)):
        def __call__(self, x):
            lengths.append(x.shape)
            return super().__call__(x)

    watch = Watch.__new__(Watch)
    vars(watch).update(vars(model.ln_f))
    model.ln_f = watch
    call()
    call()
    assert lengths == [(2, 1, 128)] * 2


# Interrupted


@pytest.fixture
def stop(monkeypatch):
    """Makes the n-th training step come with Ctrl-C: -> the steps that were taken."""
    step, taken = loop.train_step, []

    def at(n):
        def interrupted(*args):
            taken.append(1)
            if len(taken) == n:
                signal.raise_signal(signal.SIGINT)
            return step(*args)

        for place in (loop, runs):
            monkeypatch.setattr(place, "train_step", interrupted)
        return taken

    return at


@pytest.mark.parametrize(
    "name",
    [
        "starts",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "matrices",
                "ranks",
                "rates",
                "asymmetry",
                "batches",
                "data",
                "spectra",
                "truncation",
                "subspaces",
                "sizes",
                "bits",
                "forgetting",
                "tasks",
            )
        ),
    ],
)
def test_ctrl_c_in_a_run_stops_the_study_and_is_no_record(name, tmp_path, stop):
    taken = stop(1)
    with pytest.raises(KeyboardInterrupt):
        run_study(name, TINY, tmp_path / "records", tmp_path / "cache", progress=False)
    assert taken == [1]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.slow
def test_a_study_goes_on_after_the_runs_that_were_finished(tmp_path, stop, monkeypatch):
    rows = [{"lr": lr} for lr in (1e-3, 1e-2)]
    study = lambda runs: [{**row, "loss": runs.record(runs.spec(**row))["loss"]} for row in rows]
    monkeypatch.setitem(STUDIES, "rates", study)
    stop(TINY.steps + 1)  # in the second run
    with pytest.raises(KeyboardInterrupt):
        run_study("rates", TINY, tmp_path, tmp_path / "cache", progress=False)
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 1
    monkeypatch.undo()
    monkeypatch.setitem(STUDIES, "rates", study)
    path = run_study("rates", TINY, tmp_path, tmp_path / "cache", progress=False)
    whole = run_study("rates", TINY, tmp_path / "whole", tmp_path / "other", progress=False)
    assert json.loads(path.read_text())["rows"] == json.loads(whole.read_text())["rows"]


@pytest.mark.slow
def test_a_cut_run_that_an_older_version_kept_is_trained_again(tmp_path):
    kept = Runs(tmp_path, TINY, progress=False)
    whole = kept.record(kept.spec(rank=2))
    path = next(tmp_path.rglob("*.json"))
    cut = {**whole, "loss": whole["before"], "curve": {"step": [0], "loss": whole["curve"]["loss"][:1]}}
    path.write_text(json.dumps(cut))
    assert kept.record(kept.spec(rank=2)) == whole == json.loads(path.read_text())


@pytest.mark.slow
def test_the_compared_methods_keep_every_rate_they_were_tried_at(cache, monkeypatch):
    """sweep: what is forgotten can be told at a matched loss on the new text; curve: both losses of every seed."""
    monkeypatch.setattr(alternatives, "COMPARED", {name: alternatives.COMPARED[name] for name in ("full", "ia3")})
    monkeypatch.setattr(
        alternatives, "measure_steps", lambda runs, specs, repeats: {name: {"step_ratio": 1.0} for name in specs}
    )
    monkeypatch.setattr(
        alternatives, "token_ratios", lambda names, turns: {name: {"token_ratio": 1.0} for name in names}
    )
    runs = Runs(cache, TINY, progress=False)
    for row in alternatives.study_methods(runs):
        tried = [one["lr"] for one in row["sweep"]]
        assert tried == list(alternatives.grid(TINY, row["method"])) and row["lr"] in tried
        ends = [one["curve"]["loss"][-1] for one in row["sweep"]]
        assert tried[int(np.argmin(ends))] == row["lr"]  # chosen by the new text alone
        for curve in (row["curve"], *(one["curve"] for one in row["sweep"])):
            assert {"step", "loss", "old_loss"} <= curve.keys()
        assert np.allclose(np.mean([losses[-1] for losses in row["curve"]["old_loss"]]), row["old_loss"])


def test_a_methods_grid_holds_the_rate_that_was_best_for_it():
    """At full size; a quick study tries few."""
    for name in alternatives.COMPARED:
        assert len(alternatives.grid(FULL, name)) >= 3, name
        assert alternatives.grid(QUICK, name) in (
            QUICK.learning_rates, QUICK.middle_rates, QUICK.high_rates
        )  # fmt: skip

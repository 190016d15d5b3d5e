"""The benchmark measures what it says, in turns, beside whoever is there. How fast anything is, no test asks."""

import inspect
import json
import sys

import numpy as np
import pytest
from matplotlib.text import Text
from threadpoolctl import threadpool_info

from minilora import demo
from minilora.autograd import ops
from minilora.bench import benchmark, figure, generation, images, peers, processes, profile, real, report, rows, scalars
from minilora.bench import demo as bench_demo
from minilora.commands.main import COMMANDS, main
from minilora.pictures import style
from minilora.studies import turns
from minilora.training import backward

PACKAGES = ("torch", "jax", "autograd")


@pytest.fixture
def alone(monkeypatch):
    """No peer is installed, the size tiny is very small, and so is the large product."""
    for package in PACKAGES:
        monkeypatch.setitem(sys.modules, package, None)  # its import raises ImportError
    monkeypatch.setitem(peers.SIZES, "tiny", (7, 8, 16, 2, 1, 2))
    monkeypatch.setattr(benchmark, "PRODUCT", 16)
    monkeypatch.setattr(generation, "PROMPTS", 3)
    monkeypatch.setattr(turns, "BLOCK", 0.0)


def a_row(what=rows.LORA, size="tiny", against="PyTorch eager", ours=0.5, theirs=1.0, **more):
    return rows.row(what, size, against, "s", turns.ratio(np.array([ours]), np.array([theirs])), **more)


def a_record(rows):
    machine = {**benchmark.machine(), "processor": "a processor"}
    return {"machine": machine, "rows": [r.record() for r in rows], "left_out": {}, "profile": []}


# --- rows and bars ---------------------------------------------------------------------------------------------------


def test_a_bar_is_for_the_ratio_or_for_seconds_where_nothing_is_beside():
    assert a_row(ours=1.0).reached is True and a_row(ours=1.01).reached is False
    assert a_row(size="gpt2", against="matrix products", ours=1.6).reached is True
    assert a_row(size="small", against="matrix products").reached is None  # nothing was asked there
    alone = rows.row(rows.IMPORT, "", "", "s", {"ours": 0.2})
    assert alone.bar == 0.1 and alone.reached is False and alone.ratio is None
    assert a_row(size="medium", ours=1.4, on_gpu=True).reached is True and a_row(size="medium", ours=1.4).bar == 1.0


def test_every_bar_is_of_something_that_is_measured():
    grown = ["length 2,048", "length ≥ 512"]  # of test_scaling
    sizes = {*peers.SIZES, *images.MODELS, *grown, real.NAME, "", rows.ALL_CHAINS, "2 workers"}
    titles = {title for title, _ in peers.PEERS.values()}
    sides = {*titles, rows.PEFT_EAGER, rows.PRODUCTS, rows.OWN_FULL, rows.ITSELF, rows.MERGED, rows.THREADS,
             rows.ONE_WORKER}  # fmt: skip
    for _, size, against in [*rows.BARS, *rows.GPU_BARS]:
        assert size in sizes and against in sides
    assert set(rows.EVERY) == set(peers.SIZES)


# --- the benchmark ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_without_peers_it_measures_what_is_ours_and_says_who_is_left_out(alone):
    record = benchmark.bench(["tiny"], ["lora", "full", "scalars", "generation"], turns=2)
    sides = [(r["what"], r["against"]) for r in record["rows"]]
    serving = [(what, rows.MERGED) for what in (rows.UNMERGED, rows.TWO_ADAPTERS, rows.NF4)]
    assert sides == [
        *serving, (rows.BATCHED, rows.ONE_BY_ONE),
        ("LoRA step", "matrix products"), ("LoRA step", "our full step"), ("full fine-tuning step", "matrix products")
    ]  # fmt: skip
    assert set(record["left_out"]) == {
        "scalars", "generation at tiny", *(title for title, _ in peers.PEERS.values())
    }  # fmt: skip
    assert all("pip install 'minilora[peers]'" in why for why in record["left_out"].values())
    assert "left out: JAX compiled: JAX is not installed" in report.table(record)
    assert json.loads(json.dumps(record)) == record
    assert all(r["ours"] > 0 and r["turns"] == 2 for r in record["rows"])
    assert all(r["details"]["batch"] == 2 for r in record["rows"] if "step" in r["what"])


def test_the_limit_is_the_operations_at_the_rate_of_the_large_product(alone, monkeypatch):
    times = {"minilora": np.array([6.0]), "matrix products": np.array([2.0])}
    monkeypatch.setattr(benchmark, "take_turns", lambda contenders, turns: {k: v.copy() for k, v in times.items()})
    [row] = benchmark.step_rows(peers.Workload("tiny", "full"), [], 1)
    tokens, width, context, vocabulary = 2 * 8, 16, 8, 7
    products = 2 * tokens * (12 * width**2 + vocabulary * width)  # linear layers and head, forward
    attention = 2 * 2 * tokens * context * width  # q k^T and p v
    rate = 2 * 16**3 / 2.0  # of the product of 16 x 16 matrices, in operations a second
    assert row.theirs == pytest.approx(3 * (products + attention) / rate, rel=0.02)
    assert row.ratio == 6.0 / row.theirs


def test_our_full_step_trains_all_weights_on_the_same_batch(alone, monkeypatch):
    taken = {}

    def step(workload, name="minilora"):
        taken[name] = workload
        return turns.Contender(name, lambda: 1.0)

    monkeypatch.setattr(benchmark, "our_step", step)
    benchmark.step_rows(peers.Workload("tiny", "lora", batch=5), [], 1)
    assert taken["our full step"] == peers.Workload("tiny", "full", batch=5)


def test_another_batch_is_another_workload():
    small, large = (peers.Workload("tiny", "lora", batch) for batch in (2, 4))
    assert large.data[0].shape == (4, 64) and large.operations() == 2 * small.operations()
    same, again = peers.Workload("tiny", "lora"), peers.Workload("tiny", "lora")
    assert np.array_equal(same.data, again.data)
    assert all(np.array_equal(p.data, q.data) for p, q in zip(*(w.model().parameters() for w in (same, again))))  # noqa: B905


@pytest.mark.parametrize("off", [0.5, 2.0])
def test_a_peer_that_computes_something_else_is_no_peer(off):
    ours = turns.Contender("minilora", lambda: 3.0)
    peer = turns.Contender("a peer", lambda: 3.0 * (1 + off * 1e-4))
    if off < 1:
        assert peers.compare_losses(ours, [peer])["a peer"] == pytest.approx(off * 1e-4)
    else:
        with pytest.raises(ArithmeticError, match="a peer's losses"):
            peers.compare_losses(ours, [peer])


def test_a_loss_that_is_no_number_does_not_agree():
    with pytest.raises(ArithmeticError):
        peers.compare_losses(turns.Contender("m", lambda: 3.0), [turns.Contender("p", lambda: float("nan"))])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sizes": ["tiny", "huge"]}, "no size 'huge'; there are tiny"),
        ({"parts": ["lore"]}, "no part 'lore'"),
        ({"peers": ["tensorflow"]}, "no peer 'tensorflow'; there are torch"),
        ({"turns": 0}, "turns = 0"),
        ({"backend": "cupy", "with_demo": True}, "on 'numpy'"),
        ({"backend": "metal"}, "'metal'"),
    ],
)
def test_what_does_not_exist_is_not_measured(options, said):
    with pytest.raises(ValueError, match=said):
        benchmark.bench(**options)


@pytest.mark.parametrize("pair", [("huge", "lora"), ("tiny", "dora")])
def test_a_workload_names_a_size_and_a_method(pair):
    with pytest.raises(ValueError, match="there are tiny"):
        peers.Workload(*pair)


def test_ctrl_c_keeps_what_has_been_measured(alone, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "import_rows", lambda turns: [a_row()])
    monkeypatch.setattr(benchmark, "step_rows", interrupt)
    assert main(["bench", "--sizes", "tiny", "--parts", "import,lora", "--json"]) == 130
    record = json.loads(capsys.readouterr().out)
    assert len(record["rows"]) == 1 and record["left_out"]["LoRA step at tiny, and what comes after it"]


def test_the_machine_is_named():
    facts = benchmark.machine()
    assert facts["processor"] and facts["threads"] == facts["cores"] == backward.cores()
    assert facts["versions"]["numpy"] == np.__version__ and facts["blas"]
    kernels = [library["architecture"] for library in threadpool_info() if library["internal_api"] == "openblas"]
    assert facts["blas"].endswith("".join(kernels[:1]))  # OpenBLAS chooses them by the processor


# --- where the time goes ---------------------------------------------------------------------------------------------


def test_the_parts_of_a_profile_are_all_of_the_step(alone):
    before = dict(vars(ops)), backward.grad
    result = profile.profile(peers.Workload("tiny", "lora"), steps=2)
    assert (dict(vars(ops)), backward.grad) == before
    parts = {part["name"]: part for part in result["parts"]}
    assert sum(part["share"] for part in parts.values()) == pytest.approx(1)
    assert parts["attention"]["calls"] % 1 == 0 and parts["attention"]["backward"] > 0
    assert parts["lora_linear"]["calls"] == 2 * parts["attention"]["calls"]  # q and v of each block
    assert parts["embedding"]["backward"] == 0 < parts["lora_linear"]["backward"]  # the embedding is frozen
    assert parts["optimiser"]["forward"] > 0


def test_the_account_of_a_step_in_two_threads():
    of_a_thread = [("loss", "", 3.0), ("grad", "", 4.0), ("linear", "forward", 2.0), ("linear", "backward", 1.0),
                   ("linear", "backward", 1.5)]  # fmt: skip
    seconds, parts = profile.account([*of_a_thread, *of_a_thread, ("update", "", 1.0), ("step", "", 10.0)], 1, 2)
    told = {part["name"]: (part["calls"], part["forward"], part["backward"]) for part in parts}
    assert seconds == 10 and told == {
        "linear": (2, 2.0, 2.5), "model and recording": (0, 1.0, 0.0), "walk of the tape": (0, 1.5, 0.0),
        "optimiser": (0, 1.0, 0.0), "pieces, threads, sums": (0, 2.0, 0.0),
    }  # fmt: skip
    assert [part["share"] for part in parts] == sorted((part["share"] for part in parts), reverse=True)


# --- scalars and processes -------------------------------------------------------------------------------------------


def test_the_chains_are_chains_of_that_primitive(monkeypatch):
    monkeypatch.setattr(scalars, "LENGTH", 3)
    assert scalars.our_derivative("multiply")() == pytest.approx(0.99**3)
    assert scalars.our_derivative("negate")() == -1
    assert scalars.our_derivative("sqrt")() == pytest.approx(0.125 * 0.7 ** (0.125 - 1))
    for name, (_, primitives) in scalars.CHAINS.items():
        assert primitives == len(name.split(", "))


@pytest.mark.slow
def test_an_import_is_timed_in_a_process_of_its_own():
    itself, beside = processes.import_rows(2)
    assert 0 < itself.ours < 60 and itself.theirs is None
    assert beside.against == "import numpy" and beside.ratio > 0


def test_a_process_that_fails_says_why():
    with pytest.raises(ChildProcessError, match="ZeroDivisionError"):
        processes.fresh("1 / 0")


@pytest.mark.slow
@pytest.mark.skipif(not processes.CLEAR.exists(), reason="only Linux tells the peak of one step")
def test_twice_the_batch_takes_about_twice_the_memory():
    code = "from minilora.bench.processes import *; print(peak_of_step(Workload('tiny', 'lora', {}), 'ours'))"
    one, two, four = (processes.fresh(code.format(batch)) for batch in (32, 64, 128))
    assert 1.5 < two / one < 2.5 and 1.5 < four / two < 2.5


def test_the_training_beside_the_demo_is_the_demos():
    assert demo.RANK == bench_demo.RANK
    assert list(demo.LEARNING_RATE.values()) == list(bench_demo.RATES.values())
    assert inspect.signature(demo.tell).parameters["steps"].default == bench_demo.STEPS


# --- table, figure, command ------------------------------------------------------------------------------------------


def long_record():
    measured = [rows.row(rows.IMPORT, "", "", "s", {"ours": 0.2}), a_row(rows.MEMORY, "gpt2", ours=1e5)]
    numbers = turns.ratio(np.array([98765.0, 1.0]), np.array([1.0, 98765.0]))
    measured += [rows.row(rows.MEMORY, "gpt2", "PyTorch eager", "bytes", {**numbers, "ours": 12345 * 2**20})]
    measured += [rows.row(rows.GENERATION, "small", "PyTorch eager", "s/token", {**numbers, "ours": 1e-6})]
    measured += [a_row(rows.SCALARS, "all together", "HIPS autograd", 1e-6, 99e-6)]
    measured += [a_row(size=size, against=peer, ours=12.3, theirs=9.87) for size in rows.EVERY
             for peer in figure.LOOKS]  # fmt: skip
    measured += [a_row(rows.FULL, "gpt2", ours=0.0123, theirs=0.1)]
    return a_record(measured)


def test_the_table_fits_80_columns_and_says_ok_and_over():
    record = long_record()
    record["left_out"]["PyTorch compiled"] = "a reason that goes on and on " * 5
    part = {"name": "model and recording", "calls": 1234.0, "forward": 12.3, "backward": 1.0, "share": 1.0}
    record["profile"].append({"size": "medium", "method": "full", "seconds": 12.3, "parts": [part]})
    lines = report.table(record).splitlines()
    assert max(map(len, lines)) <= 80
    [ok] = [line for line in lines if "gpt2" in line and "12.30 ms" in line]
    assert ok.split() == ["gpt2", "PyTorch", "eager", "12.30", "ms", "100", "ms", "0.12", "0.12-0.12", "1.1", "ok"]
    assert [line for line in lines if line.rstrip().endswith("0.1 over")]


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [(0.00512, "s", "5.12 ms"), (1.5, "s", "1.50 s"), (2.5e-6, "s", "2.5 us"), (0.25, "s", "250 ms"),
     (3 * 2**19, "bytes", "1.5 MiB"), (0.001, "s/token", "1,000 /s"), (None, "s", "-")],
)  # fmt: skip
def test_amounts_have_units(value, unit, words):
    assert report.amount(value, unit) == words


@pytest.mark.slow
def test_the_figure_is_large_enough_and_says_what_the_rows_say(tmp_path):
    record = long_record()
    picture = figure.ratios(record)
    assert picture.get_suptitle().replace("\n", " ") == "A LoRA step takes 1.25 times PyTorch's time"
    assert "a processor" in picture.get_label()
    picture.canvas.draw()
    width, height = picture.canvas.get_width_height()
    for text in picture.findobj(Text):
        if text.get_text() and text.get_visible():
            box = text.get_window_extent()
            assert text.get_fontsize() >= 14, text
            assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, text
    one, two = (style.save(figure.ratios(record), tmp_path / name)[1].read_bytes() for name in "ab")
    assert one == two


def test_a_bar_reaches_from_one_to_the_ratio():
    picture = figure.ratios(a_record([a_row(ours=1.0, theirs=4.0)]))
    [bar] = picture.axes[0].patches
    assert (bar.get_x(), bar.get_width()) == (1, -0.75)


def test_there_is_no_figure_of_nothing():
    with pytest.raises(ValueError, match="no training step"):
        figure.ratios(a_record([a_row(rows.MEMORY)]))


@pytest.mark.slow
def test_the_command_writes_what_it_measured(alone, capsys, tmp_path):
    words = ["bench", "--sizes", "tiny", "--parts", "lora,full", "--repeats", "2"]
    files = ["--output", str(tmp_path / "bench.json"), "--figure", str(tmp_path / "speed.png")]
    assert main([*words, "--json", *files]) == 0
    record = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "bench.json").read_text()) == record
    assert {path.name for path in tmp_path.iterdir()} == {"bench.json", "speed.png", "speed.svg"}
    assert main([*words, "--profile"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80 and "where" in out and "lora_linear" in out


@pytest.mark.parametrize(
    ("flag", "word", "said"),
    [("--sizes", "tinny", "'tiny'"), ("--peers", "jaxx", "'jax'"), ("--parts", "lorra", "'lora'")],
)
def test_the_command_names_what_was_meant(flag, word, said, capsys):
    assert main(["bench", flag, word]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert repr(word) in line and said in line


def test_a_figure_without_training_steps_is_refused_before_anything_is_measured(capsys, tmp_path):
    assert main(["bench", "--parts", "memory", "--figure", str(tmp_path / "speed")]) == 2
    assert "--figure shows training steps" in capsys.readouterr().err


def test_the_commands_choices_are_all_there_is():
    defaults = {flag: how["default"] for flag, how in COMMANDS["bench"].options}
    assert set(defaults["--parts"].split(",")) == set(benchmark.USUAL)
    assert set(defaults["--peers"].split(",")) == set(peers.PEERS)

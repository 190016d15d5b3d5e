"""The door: every command does its work on tiny settings, and every mistake is one line and exit code 2."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minilora as ml
from minilora import cli
from minilora.autograd.examples import EXAMPLES
from minilora.cli import COMMANDS, main

SIZES = ["--layers", "1", "--heads", "2", "--width", "8", "--context", "16"]
QUICK = ["--steps", "4", "--batch", "2"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder with a small text in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 60)
    return tmp_path


@pytest.fixture
def base(here):
    """A small model, trained for four steps on the text."""
    assert main(["pretrain", "--corpus", "text.txt", *SIZES, *QUICK, "--output", "base.npz"]) == 0
    return here / "base.npz"


def finetune(*more):
    return main(["finetune", "--model", "base.npz", "--corpus", "text.txt", "--rank", "2", *QUICK, *more])


def the_error(capsys, *argv, code=2):
    """Run a command that must fail: -> its one line."""
    capsys.readouterr()
    assert main(list(argv)) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("minilora: error: " if code == 2 else "minilora: ")
    return lines[0]


def test_without_a_command_it_prints_the_help(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"minilora {ml.__version__}"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_with_an_example_that_parses(name, capsys, here, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    example = out.split("example:\n")[1].strip()
    assert max(map(len, out.splitlines())) <= 80
    shown = [flag if flag.startswith("-") else how.get("metavar", flag) for flag, how in COMMANDS[name].options]
    assert all(word in out for word in shown)
    import shlex

    words = shlex.split(example)
    assert words[:2] == ["minilora", name]
    assert cli.parse(words[1:]).command is COMMANDS[name]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["finetun"], "did you mean 'finetune'?"),
        (["zzz"], "there are demo, pretrain"),
        (["--versio"], "did you mean '--version'?"),
        (["generate", "--promt", "x"], "did you mean '--prompt'?"),
        (["generate", "--top-k=0"], "--top-k: got '0', expected a whole number, 1 or more"),
        (["generate", "--tokens", "many"], "--tokens: got 'many', expected a whole number"),
        (["generate", "--temperature", "-1"], "--temperature: got '-1', expected 0 or more"),
        (["generate", "--temperature", "nan"], "--temperature: got 'nan', expected 0 or more"),
        (["generate", "--prompt"], "--prompt: expected one argument"),
        (["generate", "--model", "bas"], "no model file 'bas'; did you mean 'base'?"),
        (["generate", "--model", "."], ". is a folder, expected a model file"),
        (["gradcheck", "--primitive", "gellu"], "did you mean 'gelu'?"),
        (["gradcheck", "--method", "centre"], "did you mean 'central'?"),
        (["finetune", "--method", "lara"], "did you mean 'lora'?"),
        (["finetune", "--lr", "0"], "--lr: got '0', expected a number above 0"),
        (["finetune", "--lora-dropout", "1"], "expected a number from 0 to 0.999"),
        (["pretrain", "--corpus", "python-doc"], "did you mean 'python-docs'?"),
        (["pretrain", "--width", "7"], "n_embd = 7 is not divisible by n_head = 4"),
        (["pretrain", "--corpus", "text.txt", "--context", "500"], "too short"),
        (["pretrain", "--output", "."], "is a folder, expected a file"),
        (["pretrain", "--output", "text.txt/base.npz"], "cannot write to 'text.txt': it is a file"),
        (["demo", "--output", "text.txt/figures"], "text.txt"),
        (["demo", "--steps", "1.5"], "--steps: got '1.5', expected a whole number"),
        (["merge", "--adapter", "no.npz"], "no adapter file 'no.npz'; minilora finetune writes one"),
        (["finetune", "--resume", "no.npz"], "no checkpoint file 'no.npz'"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(argv, said, here, capsys):
    assert said in the_error(capsys, *argv)


def test_traceback_shows_where(here):
    with pytest.raises(FileNotFoundError):
        main(["--traceback", "pretrain", "--corpus", "nowhere"])


def test_pretrain_writes_a_model_and_its_record(base, capsys):
    record = json.loads((base.parent / "base.json").read_text())
    model, corpus = ml.load_model(base), ml.load_corpus("text.txt")
    assert (record["steps"], record["seed"], record["corpus"]) == (4, 0, "text.txt")
    assert record["validation_loss"] == pytest.approx(ml.evaluate(model, corpus), abs=1e-5)
    assert record["training"]["step"] == [1, 2, 3, 4] and len(record["training"]["loss"]) == 4
    assert record["config"]["n_embd"] == 8 and record["parameters"] == model.count()
    assert record["versions"]["numpy"] == np.__version__
    with np.load(base) as file:
        assert file["wte.weight"].dtype == np.float16
    assert sorted(p.name for p in base.parent.iterdir()) == ["base.json", "base.npz", "text.txt"]


def test_pretrain_leaves_its_dropout_behind(here):
    main(["pretrain", "--corpus", "text.txt", *SIZES, *QUICK, "--dropout", "0.2", "--output", "b.npz"])
    assert json.loads((here / "b.json").read_text())["config"]["dropout"] == 0.2
    assert ml.load_model("b.npz").config.dropout == 0


def test_the_same_seed_gives_the_same_file(base):
    first = base.read_bytes()
    main(["pretrain", "--corpus", "text.txt", *SIZES, *QUICK, "--output", "base.npz"])
    assert base.read_bytes() == first
    main(["pretrain", "--corpus", "text.txt", *SIZES, *QUICK, "--seed", "1", "--output", "base.npz"])
    assert base.read_bytes() != first


def test_finetune_merge_generate(base, capsys):
    assert finetune("--lr", "0.05", "--targets", "q_proj,up_proj", "--output", "adapter.npz") == 0
    out = capsys.readouterr().out
    adapted = ml.load_adapter(ml.load_model("base.npz"), "adapter.npz")
    trained = adapted.count(trainable=True)
    assert trained == 2 * (8 + 8) + 2 * (8 + 32)
    assert f"lora: {trained} trained, base model {ml.load_model(base).count():,}" in out
    assert "minilora generate --model base.npz --adapter adapter.npz" in out

    assert main(["merge", "--model", "base.npz", "--adapter", "adapter.npz", "--output", "merged.npz"]) == 0
    out = capsys.readouterr().out
    printed = float(out.split("difference in outputs ")[1].split(",")[0])
    tokens = np.arange(16)[None]
    with ml.no_grad():
        difference = np.abs(ml.load_model("merged.npz")(tokens).numpy() - adapted(tokens).numpy()).max()
        from_base = np.abs(ml.load_model("base.npz")(tokens).numpy() - adapted(tokens).numpy()).max()
    assert difference < 1e-6 < 1e-3 < from_base
    assert 0 <= printed < 1e-6

    choices = ["--prompt", "The ", "--tokens", "20", "--temperature", "0"]
    texts = []
    for source in (["--model", "merged.npz"], ["--model", "base.npz", "--adapter", "adapter.npz"]):
        assert main(["generate", *source, *choices]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and texts[0].startswith("The ")


def test_finetune_all_weights_writes_a_model(base, capsys):
    assert finetune("--method", "full", "--output", "full.npz") == 0
    out = capsys.readouterr().out
    assert "(100.0 %)" in out and "minilora generate --model full.npz" in out
    assert not np.array_equal(ml.load_model("full.npz").wte.weight.data, ml.load_model(base).wte.weight.data)


OTHERS = {"dora": [], "houlsby": ["--bottleneck", "2"], "pfeiffer": [], "prompt": ["--virtual", "3"], "bitfit": []}
OTHERS |= {"prefix": ["--virtual", "3"], "last-blocks": ["--blocks", "1"]}


@pytest.mark.parametrize("method", OTHERS)
def test_finetune_by_every_method_writes_an_adapter_that_generate_takes(method, base, capsys):
    assert finetune("--method", method, *OTHERS[method], "--output", "adapter.npz") == 0
    out = capsys.readouterr().out
    assert f"training          {method}: " in out and "minilora generate --model base.npz --adapter adapter.npz" in out
    assert f"base model {ml.load_model(base).count():,}" in out
    chosen = ["--model", "base.npz", "--adapter", "adapter.npz"]
    assert main(["generate", *chosen, "--tokens", "5"]) == 0
    if method in ("houlsby", "pfeiffer", "prompt", "prefix"):
        assert "minilora: error: merge_adapter: " in the_error(capsys, "merge", *chosen)
    else:
        assert main(["merge", *chosen, "--output", "merged.npz"]) == 0


def test_qlora_from_the_command_line(base, capsys):
    assert finetune("--quantize", "nf4", "--output", "q.npz") == 0
    out = capsys.readouterr().out
    assert "minilora generate --model base.npz --quantize nf4 --adapter q.npz" in out
    assert f"base model {ml.load_model(base).count():,}" in out
    chosen = ["--model", "base.npz", "--adapter", "q.npz"]
    assert main(["generate", *chosen, "--quantize", "nf4", "--tokens", "5"]) == 0
    assert "trained on another base model" in the_error(capsys, "generate", *chosen)
    assert main(["merge", *chosen, "--quantize", "nf4", "--output", "merged.npz"]) == 0
    full = ["finetune", "--model", "base.npz", "--corpus", "text.txt", "--method", "full", "--quantize", "nf4"]
    assert "quantised weights cannot be trained" in the_error(capsys, *full)


def test_generate_is_seeded_and_writes_several(base, capsys):
    def text(*more):
        assert main(["generate", "--model", "base.npz", "--tokens", "30", *more]) == 0
        return capsys.readouterr().out

    capsys.readouterr()
    assert text("--seed", "3") == text("--seed", "3") != text("--seed", "4")
    assert text("--samples", "3").count("-" * 40) == 2


def test_a_warning_is_one_line(base, capsys):
    capsys.readouterr()
    assert main(["generate", "--model", "base.npz", "--prompt", "été", "--tokens", "1"]) == 0
    error = capsys.readouterr().err
    assert error == "minilora: warning: the prompt has 2 characters outside the vocabulary; they read '?'\n"


def test_files_of_another_kind_are_refused(base, capsys):
    finetune("--output", "adapter.npz")
    assert "'adapter', expected 'model'" in the_error(capsys, "generate", "--model", "adapter.npz")
    assert "expected 'adapter'" in the_error(capsys, "merge", "--model", "base.npz", "--adapter", "base.npz")
    base.write_bytes(base.read_bytes()[:500])
    assert "base.npz" in the_error(capsys, "generate", "--model", "base.npz")


def test_an_adapter_of_another_base_is_refused(base, capsys):
    finetune("--output", "adapter.npz")
    main(["pretrain", "--corpus", "text.txt", *SIZES, *QUICK, "--seed", "5", "--output", "other.npz"])
    assert "another base model" in the_error(capsys, "merge", "--model", "other.npz", "--adapter", "adapter.npz")


def test_a_name_close_to_a_file_is_suggested(base, capsys):
    assert "did you mean 'base.npz'?" in the_error(capsys, "generate", "--model", "bse.npz")


def test_a_diverging_loss_is_one_line(base, capsys):
    line = the_error(
        capsys, "finetune", "--model", "base.npz", "--corpus", "text.txt", "--method", "full", "--rank", "2",
        "--lr", "1e6", "--steps", "60", "--batch", "2", "--output", "x.npz",
    )  # fmt: skip
    assert "training diverged at step" in line


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_ctrl_c_saves_and_the_printed_command_goes_on(command, base, capsys, monkeypatch):
    def run(argv):
        assert main(argv) == 0
        with np.load("out.npz") as file:
            return {name: file[name] for name in file.files}

    argv = [command, "--corpus", "text.txt", *QUICK, "--output", "out.npz"]
    argv += SIZES if command == "pretrain" else ["--model", "base.npz", "--rank", "2"]
    whole = run(argv)

    step, calls = ml.training.loop.train_step, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 2:
            import signal

            signal.raise_signal(signal.SIGINT)
        return step(*args)

    monkeypatch.setattr(ml.training.loop, "train_step", interrupted)
    line = the_error(capsys, *argv, code=130)
    monkeypatch.undo()
    monkeypatch.chdir(base.parent)
    assert "stopped after step 2 of 4" in line
    words = line.split("to go on: minilora ")[1].split()
    assert words[0] == command
    went_on = run(words)
    assert whole.keys() == went_on.keys()
    assert all(np.array_equal(whole[name], went_on[name]) for name in whole)


def test_a_run_that_goes_on_keeps_its_settings(base, capsys):
    finetune("--checkpoint", "c.npz", "--output", "a.npz")
    assert "--lr cannot change" in the_error(capsys, "finetune", "--resume", "c.npz", "--lr", "0.1")
    assert "LoRA run" in the_error(capsys, "pretrain", "--resume", "c.npz", "--output", "p.npz")


def test_ctrl_c_anywhere_is_one_line(capsys, monkeypatch, here):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load_model", interrupt)
    assert the_error(capsys, "generate", code=130) == "minilora: interrupted"


def test_gradcheck_prints_every_primitive_in_80_columns(capsys):
    assert main(["gradcheck"]) == 0
    out = capsys.readouterr().out
    names = [line.split()[0] for line in out.splitlines() if line.endswith("pass")]
    assert set(EXAMPLES) <= set(names)
    assert {"attn.q_proj.lora_A", "mlp.down_proj.lora_B", "wte.weight"} <= set(names)
    assert max(map(len, out.splitlines())) <= 80
    assert f"{len(names)} of {len(names)} pass" in out


def test_gradcheck_fails_with_a_wrong_derivative(capsys, monkeypatch):
    wrong = lambda x: ml.ops.exp(x.detach()) * 1.0 + x - x.detach()  # the value of exp, the derivative of x
    monkeypatch.setitem(cli.PRIMITIVES, "exp", wrong)
    assert main(["gradcheck", "--primitive", "exp"]) == 1
    assert capsys.readouterr().out.count("FAIL (tolerance") == 3
    assert main(["gradcheck", "--method", "directional"]) == 1
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines() if line.endswith("FAIL")] == ["exp"]


def test_gradcheck_of_one_primitive_names_its_inputs(capsys):
    assert main(["gradcheck", "--primitive", "lora_linear", "--method", "complex-step"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["x", "w", "b", "A", "B"]


def test_python_m_minilora_and_a_closed_pipe():
    run = subprocess.run([sys.executable, "-m", "minilora", "mege"], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "minilora: error: no command 'mege'; did you mean 'merge'?\n"
    piped = subprocess.Popen([sys.executable, "-m", "minilora"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    piped.stdout.close()
    assert piped.stderr.read() == b""
    piped.stderr.close()
    piped.wait()


def test_the_door_opens_without_matplotlib():
    code = "import sys, minilora.cli; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


# --- count, study and figures: what they compute is tested in tests/analysis.


def test_count_prints_the_objects_keys(capsys):
    assert main(["count", "gpt3-175b", "--method", "lora", "--rank", "4", "--targets", "q_proj,v_proj", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert list(record) == [
        "model", "method", "rank", "target_modules", "total_parameters", "trainable_parameters", "trainable_fraction",
        "checkpoint_bytes", "training_memory_bytes",
    ]  # fmt: skip
    assert record["trainable_parameters"] == 96 * 2 * 4 * (12288 + 12288)  # layers x (q, v) x r x (d_in + d_out)


@pytest.mark.parametrize(
    "words", [[], ["--compare"], ["--paper"], ["gpt2", "--method", "houlsby", "--bottleneck", "8"]]
)
def test_count_prints_tables_of_80_columns(words, capsys):
    assert main(["count", *words]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) > 10 and max(map(len, out.splitlines())) <= 80


def test_count_compares_every_method(capsys):
    from minilora.analysis.counting import METHODS

    assert main(["count", "gpt2", "--compare", "--json"]) == 0
    assert [record["method"] for record in json.loads(capsys.readouterr().out)] == list(METHODS)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["count", "gpt5"], "unknown model 'gpt5' (did you mean 'gpt2'?)"),
        (["count", "--method", "lore"], "unknown method 'lore' (did you mean 'lora'?)"),
        (["count", "--rank", "0"], "expected a whole number, 1 or more"),
        (["study", "rank"], "no study 'rank'; did you mean 'ranks'?"),
        (["figures", "spectr"], "no figure 'spectr'"),
    ],
)
def test_mistakes_in_the_analysis_commands(words, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    err = capsys.readouterr().err
    assert expected in err and err.count("\n") == 1


def test_study_runs_what_it_is_asked_and_refuses_to_overwrite(tmp_path, monkeypatch, capsys):
    from minilora.analysis import studies
    from minilora.analysis.runs import FULL
    from minilora.analysis.runs import QUICK as QUICK_SCALE

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(studies.STUDIES, "ranks", lambda runs: [{"rank": 1, "steps": runs.scale.steps}])
    assert main(["study", "ranks", "--quick"]) == 0
    assert "minilora figures --data runs/quick" in capsys.readouterr().out
    assert studies.load_records("ranks", "runs/quick")["rows"] == [{"rank": 1, "steps": QUICK_SCALE.steps}]
    assert main(["study", "ranks", "--quick"]) == 2
    assert "ranks.json is there already; --force makes it anew" in capsys.readouterr().err
    assert main(["study", "ranks", "--quick", "--force"]) == 0
    assert main(["study", "ranks"]) == 0  # the full one has a folder of its own
    assert studies.load_records("ranks", "figures/data")["rows"][0]["steps"] == FULL.steps


def test_figures_draws_what_needs_no_records(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["figures", "lora-layer", "--output", "pictures"]) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert paths == [Path("pictures", f"lora-layer.{kind}") for kind in ("png", "svg", "txt")]
    assert main(["figures", "ranks"]) == 2
    assert "`minilora study ranks` makes them" in capsys.readouterr().err


def test_study_all_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    from minilora.analysis import studies

    monkeypatch.chdir(tmp_path)
    done = []

    def stopped(runs):
        raise KeyboardInterrupt

    monkeypatch.setattr(
        studies, "STUDIES", {"ranks": lambda runs: [{"n": done.append("ranks") or 1}], "rates": stopped}
    )
    assert main(["study", "all", "--quick"]) == 130
    studies.STUDIES["rates"] = lambda runs: [{"n": done.append("rates") or 1}]
    assert main(["study", "all", "--quick"]) == 0
    assert done == ["ranks", "rates"]
    assert "ranks.json; --force makes it anew" in capsys.readouterr().out


def test_the_table_of_methods_is_printed_from_records(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "`minilora study methods` makes them" in the_error(capsys, "study", "methods", "--table")
    assert "the table is of the study methods" in the_error(capsys, "study", "ranks", "--table")

"""`minilora study`: what it computes is tested in tests/studies."""

import shlex
import signal

from lines import the_error

from minilora.commands.main import main


def test_study_runs_what_it_is_asked_and_refuses_to_overwrite(tmp_path, monkeypatch, capsys):
    from minilora.studies import studies
    from minilora.studies.runs import FULL
    from minilora.studies.runs import QUICK as QUICK_SCALE

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


def test_study_all_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    from minilora.studies import studies

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


def test_a_study_of_a_model_that_is_not_here_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    from minilora.studies import studies

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "none"))
    assert "minilora fetch smollm2-135m" in the_error(capsys, "study", "real", "--quick")
    monkeypatch.setattr(studies, "STUDIES", {"real": studies.STUDIES["real"], "ranks": lambda runs: [{"n": 1}]})
    assert main(["study", "all", "--quick"]) == 0  # the others are made
    said = capsys.readouterr().out
    assert "left out  minilora fetch smollm2-135m gets the model it needs" in said and "ranks.json" in said


def test_the_table_of_methods_is_printed_from_records(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "`minilora study methods` makes them" in the_error(capsys, "study", "methods", "--table")
    assert "the table is of the study methods" in the_error(capsys, "study", "ranks", "--table")


def test_ctrl_c_in_a_run_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    from minilora.studies import runs

    monkeypatch.chdir(tmp_path)
    step = runs.train_step

    def interrupted(*args):
        signal.raise_signal(signal.SIGINT)
        return step(*args)

    monkeypatch.setattr(runs, "train_step", interrupted)
    words = ["study", "starts", "--quick", "--cache", "my runs", "--force"]
    said = f"stopped in starts; its finished runs are kept in my runs; to go on: {shlex.join(['minilora', *words])}"
    assert said in the_error(capsys, *words, code=130)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]

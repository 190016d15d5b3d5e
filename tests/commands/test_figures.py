"""`minilora figures`: what it draws is tested in tests/pictures."""

from pathlib import Path

from minilora.commands.main import main


def test_figures_draws_what_needs_no_records(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["figures", "lora-layer", "--output", "pictures"]) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert paths == [Path("pictures", f"lora-layer.{kind}") for kind in ("png", "svg", "txt")]
    assert main(["figures", "ranks"]) == 2
    assert "`minilora study ranks` makes them" in capsys.readouterr().err

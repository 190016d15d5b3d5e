"""`minilora gradcheck`: every derivative, in a table."""

import pytest

import minilora as ml
from minilora.autograd.examples import EXAMPLES
from minilora.commands import gradcheck
from minilora.commands.main import main


@pytest.mark.slow
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
    monkeypatch.setitem(gradcheck.PRIMITIVES, "exp", wrong)
    assert main(["gradcheck", "--primitive", "exp"]) == 1
    assert capsys.readouterr().out.count("FAIL (tolerance") == 3
    assert main(["gradcheck", "--method", "directional"]) == 1
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines() if line.endswith("FAIL")] == ["exp"]


def test_gradcheck_of_one_primitive_names_its_inputs(capsys):
    assert main(["gradcheck", "--primitive", "lora_linear", "--method", "complex-step"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["x", "w", "b", "A", "B"]

"""The benchmark's peers compute what we compute: the same losses, texts, derivatives and trainings."""

from dataclasses import replace

import numpy as np
import pytest

import minilora as ml
from minilora.bench import benchmark, demo, generation, images, peers, processes, real, scalars, scaling
from minilora.bench.pytorch import TorchGPT, compiled
from minilora.nn.architectures import find
from minilora.nn.characters import VOCABULARY
from minilora.studies import turns
from minilora.training.corpus import Corpus

pytest.importorskip("torch", reason="needs the extra 'peers'")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Tiny is smaller still; PyTorch keeps to the one thread of these tests."""
    monkeypatch.setitem(peers.SIZES, "tiny", (19, 16, 32, 4, 2, 3))
    monkeypatch.setattr("minilora.bench.pytorch.cores", lambda: 1)
    monkeypatch.setattr(benchmark, "PRODUCT", 16)
    monkeypatch.setattr(turns, "BLOCK", 0.0)


@pytest.mark.parametrize("method", peers.METHODS)
@pytest.mark.parametrize("name", ["torch", "jax", "autograd", pytest.param("torch-compiled", marks=pytest.mark.slow)])
def test_a_peer_trains_as_we_do(name, method):
    pytest.importorskip(name.partition("-")[0], reason="needs the extra 'peers'")
    workload = peers.Workload("tiny", method)
    steps, left_out = peers.peer_steps(workload, [name])
    if left_out and name == "torch-compiled":
        pytest.skip(next(iter(left_out.values())))
    ours = peers.our_step(workload)
    [difference] = peers.compare_losses(ours, steps).values()
    assert difference < 1e-5
    first = steps[0].step()
    for _ in range(20):
        last = steps[0].step()
    assert last < first - 0.005  # it learns


def test_the_rows_of_a_step_with_its_peers():
    rows = benchmark.step_rows(peers.Workload("tiny", "lora"), ["torch"], turns=2)
    assert [r.against for r in rows] == ["PyTorch eager", "products alone", "matrix products", "our full step"]
    eager, blas, *_ = rows
    assert eager.bar == (0.85 if blas.ratio < 1.05 else 1.0) and blas.ours > 0 < blas.theirs
    assert eager.details["loss_difference"] < 1e-5 and eager.theirs > 0


@pytest.mark.parametrize("name", images.MODELS)
def test_the_rows_of_a_model_of_pictures(name):
    found = images.image_rows(name, turns=1)
    assert [r.what for r in found] == ["LoRA step", "full fine-tuning step"]
    assert all(r.bar == 1.0 and r.size == name and r.details["loss_difference"] < 1e-5 for r in found)


def test_a_compiler_that_is_not_there_is_one_line(monkeypatch):
    import torch

    def compile(function, dynamic):
        def fail(*_):
            raise RuntimeError("backend='inductor' raised:\nInvalidCxxCompiler: No working C++ compiler found\n\nmore")

        return fail

    monkeypatch.setattr(torch, "compile", compile)
    workload = peers.Workload("tiny", "full")
    with pytest.raises(turns.LeftOut, match=r"^torch.compile failed: InvalidCxxCompiler: No working C\+\+ compiler"):
        compiled(workload.model(), *workload.data)


def test_a_gpu_that_is_not_there_is_one_line(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    _, left_out = peers.peer_steps(peers.Workload("tiny", "full"), ["torch"], "cuda")
    assert left_out == {"PyTorch eager": "this PyTorch finds no GPU"}


def test_pytorchs_cache_changes_nothing():
    workload = peers.Workload("tiny", "lora")
    model, tokens = workload.model(), workload.data[0][:1]
    peer, cache = TorchGPT(model), []
    with peer.torch.no_grad():
        first = peer.logits(peer.tensor(tokens[:, :5]), cache)
        rest = [peer.logits(peer.tensor(tokens[:, i : i + 1]), cache) for i in range(5, tokens.shape[1])]
    theirs = np.concatenate([part.numpy() for part in (first, *rest)], axis=1)
    assert np.allclose(theirs, model(tokens).numpy(), atol=1e-5)


def test_both_write_the_same_text():
    [row] = generation.generation_rows("tiny", turns=2)
    assert row.unit == "s/token" and row.bar == 1.0 and row.ours > 0 < row.theirs


def test_a_text_that_differs_is_no_comparison(monkeypatch):
    monkeypatch.setattr(TorchGPT, "generate", lambda self, tokens, count: np.zeros((1, count + 1), int))
    with pytest.raises(ArithmeticError, match="different texts"):
        generation.generation_rows("tiny", turns=1)


def test_the_derivatives_of_the_chains_agree(monkeypatch):
    pytest.importorskip("autograd", reason="needs the extra 'peers'")
    monkeypatch.setattr(scalars, "LENGTH", 7)
    *chains, together = scalars.scalar_rows(turns=2)
    assert [r.size for r in chains] == list(scalars.CHAINS)
    assert together.bar == 0.5 and all(r.bar is None for r in chains)
    assert min(r.ours for r in chains) <= together.ours <= max(r.ours for r in chains)


@pytest.mark.slow
@pytest.mark.skipif(not processes.CLEAR.exists(), reason="only Linux tells the peak of one step")
def test_a_point_of_what_grows_is_measured_beside_pytorch():
    at = {**scaling.BASE, "length": 16, "width": 32, "depth": 1}
    for measure, unit, low, high in ((scaling.time_of, "s", 0, 60), (scaling.memory_of, "bytes", 1e4, 2**28)):
        row = measure(scaling.workload(at, "lora"), at, 2)
        assert row.unit == unit and low < row.ours < high and low < row.theirs < high and row.details == at


@pytest.mark.slow
@pytest.mark.skipif(not processes.CLEAR.exists(), reason="only Linux tells the peak of one step")
def test_memory_is_measured_in_processes_of_their_own():
    [row] = processes.memory_rows("tiny", 1)
    assert row.unit == "bytes" and 2**20 < row.ours < 2**28 and 2**20 < row.theirs < 2**28


@pytest.mark.parametrize("lora", [True, False])
def test_the_demos_training_in_pytorch_ends_where_ours_does(lora):
    text = np.random.default_rng(0).integers(0, len(VOCABULARY), 4000)
    model = ml.GPT(ml.GPTConfig(len(VOCABULARY), 16, 1, 2, 16)).astype("float64")
    if lora:
        ml.add_lora(model, ml.LoRAConfig(4, target_modules=("*",)))
    settings = ml.Settings(12, 4, lr=1e-2, warmup=3, evaluate_every=5, max_norm=0.15)  # some steps are clipped
    corpus = Corpus("noise", text[:3000], text[3000:])
    theirs = demo.train(model, corpus, settings)
    run = ml.train(ml.Run(model, corpus, settings), progress=False)
    assert theirs == pytest.approx(run.validation["loss"][-1], abs=6e-6)  # ours is told with five digits
    assert theirs != pytest.approx(run.validation["loss"][0], abs=1e-3)


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_a_real_models_step_is_that_of_transformers_and_peft(head, monkeypatch):
    pytest.importorskip("peft", reason="needs the extra 'peers'")
    a = replace(find("smollm2-135m"), vocab_size=96, width=16, layers=2, heads=4, kv_heads=2, mlp_width=24, head=head)
    [row] = real.real_rows(2, a)
    assert (row.unit, row.turns, row.bar) == ("s", 2, 1.0) and row.ours > 0 and row.theirs > 0
    other = real.our_step(replace(a, norm_eps=0.1))
    monkeypatch.setattr(real, "our_step", lambda a: other)
    with pytest.raises(ArithmeticError, match=r"losses of smollm2-135m .*: no fair comparison"):
        real.real_rows(1, a)

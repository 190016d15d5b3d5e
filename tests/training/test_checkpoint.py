"""Checkpoints: a run stopped anywhere goes on as if it had not been, and a bad file is refused."""

import copy
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import minilora as ml
from minilora.nn.architectures import find
from minilora.nn.layers import Linear
from minilora.nn.storage import load_arrays, save_arrays
from minilora.training.checkpoint import load_checkpoint, save_checkpoint
from minilora.training.corpus import BUILT_IN, Corpus

FAST = {"steps": 7, "batch_size": 4, "evaluate_every": 3, "evaluation_windows": 4, "checkpoint_every": 2, "warmup": 2}
LORA = ml.LoRAConfig(rank=2, alpha=5, target_modules=("q_proj", "*.mlp.*"), rank_stabilized=True)
LORA_DROPOUT = ml.LoRAConfig(rank=2, target_modules="*", dropout=0.2, init="gaussian")


def run_of(model, corpus, **settings):
    return ml.Run(model, corpus, ml.Settings(**{**FAST, **settings}))


def bits(run):
    state = {f"optimizer.{k}": v for k, v in run.optimizer.state_dict().items()} | run.model.state_dict()
    arrays = {name: (np.asarray(value).dtype, np.asarray(value).tobytes()) for name, value in state.items()}
    trainable = [name for name, p in run.model.named_parameters() if p.requires_grad]
    return arrays, trainable, run.history, run.validation, run.rng.bit_generator.state, run.settings


class StopAt(Corpus):
    """A corpus with Ctrl-C in its n-th batch, or, for n = 0, in the first look at its validation text."""

    def batch(self, *args):
        self.count()
        return super().batch(*args)

    def validation_windows(self, *args):
        self.count(0)
        return super().validation_windows(*args)

    def count(self, n=1):
        object.__setattr__(self, "drawn", getattr(self, "drawn", 0) + n)
        if self.drawn == self.stop:
            signal.raise_signal(signal.SIGINT)
            object.__setattr__(self, "stop", None)

    @classmethod
    def of(cls, corpus, n):
        stopping = cls(corpus.name, corpus.train, corpus.validation)
        object.__setattr__(stopping, "stop", n)
        return stopping


@pytest.mark.slow
@pytest.mark.parametrize("stop", range(7))
@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"dtype": "float64"},
        {"dropout": 0.2},
        {"lora": LORA},
        {"lora": LORA_DROPOUT, "dropout": 0.1, "dtype": "float64"},
    ],
    ids=["float32", "float64", "dropout", "lora", "all"],
)
def test_a_run_stopped_at_any_step_goes_on_bit_for_bit(make_model, corpus, tmp_path, stop, kind, interrupted):
    whole = ml.train(run_of(make_model(**kind), corpus), progress=False)
    path = tmp_path / "run.npz"
    stopped = interrupted(run_of(make_model(**kind), StopAt.of(corpus, stop)), path)
    assert stopped.step == stop
    assert stopped.interrupted
    loaded = load_checkpoint(path)
    assert bits(loaded) == bits(stopped)
    assert bits(ml.train(loaded, progress=False)) == bits(whole)


def test_a_run_resumed_many_times(make_model, corpus, tmp_path, interrupted):
    path = tmp_path / "run.npz"
    whole = ml.train(run_of(make_model(dropout=0.1), corpus), progress=False)
    save_checkpoint(run_of(make_model(dropout=0.1), corpus), path)
    for _ in range(7):
        interrupted(load_checkpoint(path, StopAt.of(corpus, 1)), path)
    assert bits(load_checkpoint(path)) == bits(whole)


@pytest.mark.slow
def test_a_run_of_several_batches_a_step_is_one_of_larger_batches(make_model, corpus, tmp_path, interrupted):
    """The same bits where the pieces are the same; steps are updates; it goes on from the middle bit for bit."""
    make = lambda: make_model(dropout=0.1, lora=LORA_DROPOUT)
    whole = ml.train(run_of(make(), corpus, batch_size=12, pieces=6), progress=False)
    run = ml.train(run_of(make(), corpus, batch_size=4, accumulate=3, pieces=2), tmp_path / "run.npz", progress=False)
    assert bits(run)[:-1] == bits(whole)[:-1]  # all but the settings
    assert run.history["step"] == [1, 2, 3, 4, 5, 6, 7]
    interrupted(run_of(make(), StopAt.of(corpus, 3), batch_size=4, accumulate=3, pieces=2), tmp_path / "run.npz")
    resumed = load_checkpoint(tmp_path / "run.npz")
    assert resumed.step == 3 and resumed.settings.accumulate == 3
    assert bits(ml.train(resumed, progress=False)) == bits(run)


def test_what_is_trained_beside_the_adapter_is_trained_on(make_model, corpus, tmp_path, interrupted):
    """A class may unfreeze layer norms beside LoRA, or freeze embeddings without it."""
    adapted, plain = make_model(lora=LORA), make_model()
    for name, p in adapted.named_parameters():
        if ".ln_" in name:
            p.requires_grad = True
    plain.wte.weight.requires_grad = False
    for model in (adapted, plain):
        trainable = {name for name, p in model.named_parameters() if p.requires_grad}
        whole = ml.train(run_of(copy.deepcopy(model), corpus), progress=False)
        path = tmp_path / "run.npz"
        interrupted(run_of(model, StopAt.of(corpus, 3)), path)
        loaded = load_checkpoint(path)
        assert {name for name, p in loaded.model.named_parameters() if p.requires_grad} == trainable
        assert bits(ml.train(loaded, progress=False)) == bits(whole)


def test_a_run_with_two_learning_rates_goes_on_bit_for_bit(make_model, corpus, tmp_path, interrupted):
    path = tmp_path / "run.npz"
    whole = ml.train(run_of(make_model(lora=LORA), corpus, lr_ratio=4), progress=False)
    interrupted(run_of(make_model(lora=LORA), StopAt.of(corpus, 3), lr_ratio=4), path)
    loaded = load_checkpoint(path)
    assert set(loaded.optimizer.ratios) == {1, 4}
    assert bits(ml.train(loaded, progress=False)) == bits(whole)
    one_rate = ml.train(run_of(make_model(lora=LORA), corpus), progress=False)
    assert one_rate.history["loss"] != whole.history["loss"]


def test_a_checkpoint_from_before_there_were_two_rates_has_one(make_model, corpus, tmp_path, interrupted):
    path = tmp_path / "run.npz"
    whole = ml.train(run_of(make_model(lora=LORA), corpus), progress=False)
    interrupted(run_of(make_model(lora=LORA), StopAt.of(corpus, 3)), path)
    arrays, header = load_arrays(path, "checkpoint")
    del header["settings"]["lr_ratio"]
    save_arrays(path, arrays, header)
    assert bits(ml.train(load_checkpoint(path), progress=False)) == bits(whole)


def test_a_checkpoint_from_before_it_held_all_adapters(make_model, corpus, tmp_path, interrupted):
    path = tmp_path / "run.npz"
    whole = ml.train(run_of(make_model(lora=LORA), corpus), progress=False)
    interrupted(run_of(make_model(lora=LORA), StopAt.of(corpus, 3)), path)
    arrays, header = load_arrays(path, "checkpoint")
    del header["adapter"], header["carried"], header["settings"]["pieces"]
    save_arrays(path, arrays, header)
    assert bits(ml.train(load_checkpoint(path), progress=False)) == bits(whole)


# Several adapters


def with_three(make_model):
    """Three adapters of different shapes and methods, each with values of its own."""
    model = make_model(lora=LORA)
    ml.add_lora(model, ml.LoRAConfig(rank=3, init="gaussian"), rng=2, name="b")
    ml.add_adapter(model, ml.PfeifferConfig(bottleneck=3), rng=3, name="c")
    rng = np.random.default_rng(4)
    for name in ("default", "b", "c"):
        ml.set_adapter(model, name)
        for p in model.parameters(trainable=True):
            p.data[...] = rng.normal(0, 0.1, p.shape)
    return model


@pytest.mark.parametrize("active", ["default", "b", "c", ["default", "b"]], ids=str)
def test_all_adapters_come_back_not_the_active_one_alone(make_model, corpus, tmp_path, interrupted, active):
    model, path = with_three(make_model), tmp_path / "run.npz"
    ml.set_adapter(model, active)
    whole = ml.train(run_of(copy.deepcopy(model), corpus), progress=False)
    interrupted(run_of(model, StopAt.of(corpus, 3)), path)
    loaded = load_checkpoint(path)
    assert set(loaded.model.adapters) == {"default", "b", "c"}
    assert bits(ml.train(loaded, progress=False)) == bits(whole)
    tokens = corpus.validation_windows(12, 3)[0]
    for name in ("b", "default", "c"):
        for one in (whole.model, loaded.model):
            ml.set_adapter(one, name)
        np.testing.assert_array_equal(loaded.model(tokens).data, whole.model(tokens).data)
    for one in (whole.model, loaded.model):
        ml.remove_lora(one)
    np.testing.assert_array_equal(loaded.model(tokens).data, whole.model(tokens).data)


def test_a_run_whose_adapter_was_put_aside_is_not_saved(make_model, corpus, tmp_path):
    """Its optimiser's state would be read as the other adapter's."""
    model = with_three(make_model)
    ml.set_adapter(model, "b")
    run = run_of(model, corpus)
    ml.set_adapter(model, "default")
    with pytest.raises(ValueError, match="save_checkpoint: the model trains other parameters now than when"):
        save_checkpoint(run, tmp_path / "run.npz")
    assert not (tmp_path / "run.npz").exists()
    ml.set_adapter(model, "b")
    assert load_checkpoint(save_checkpoint(run, tmp_path / "run.npz")).model.adapters.active == ("b",)


def test_what_could_not_be_saved_is_refused_before_it_is_trained(make_model, corpus, tmp_path):
    path = tmp_path / "run.npz"
    model = with_three(make_model)
    ml.set_adapter(model, "b")
    aside, on_a_part = run_of(model, corpus), make_model()
    ml.set_adapter(model, "default")
    ml.add_lora(on_a_part.blocks[0], ml.LoRAConfig(rank=2))
    for run, words in (
        (aside, "train: the model trains other parameters now"),
        (run_of(on_a_part, corpus), r"train: blocks\.0 has an adapter of its own.*remove_lora"),
    ):
        with pytest.raises(ValueError, match=words):
            ml.train(run, path, progress=False)
        assert run.step == 0 and not path.exists()
    with pytest.raises(ValueError, match=r"save_model: blocks\.0 has an adapter of its own"):
        ml.save_model(on_a_part, tmp_path / "model.npz")
    assert not (tmp_path / "model.npz").exists()
    ml.train(run_of(on_a_part, corpus), progress=False)  # in memory it may be trained


def test_a_base_of_16_bits_and_its_adapter_of_32_come_back_as_they_were(make_model, corpus, tmp_path, interrupted):
    make = lambda: make_model("float16", lora=LORA)
    assert {p.dtype.name for p in make().parameters()} == {"float16", "float32"}
    whole, path = ml.train(run_of(make(), corpus), progress=False), tmp_path / "run.npz"
    interrupted(run_of(make(), StopAt.of(corpus, 3)), path)
    assert bits(ml.train(load_checkpoint(path), progress=False)) == bits(whole)


def test_a_checkpoint_holds_the_number_of_pieces(make_model, corpus, tmp_path):
    path = save_checkpoint(run_of(make_model(), corpus, pieces=np.int64(3)), tmp_path / "run.npz")
    assert load_checkpoint(path).settings.pieces == 3


def test_a_finished_run_does_nothing_more(make_model, corpus, tmp_path):
    path = tmp_path / "run.npz"
    done = ml.train(run_of(make_model(), corpus), path, progress=False)
    assert bits(ml.train(load_checkpoint(path), progress=False)) == bits(done)


def test_a_merged_adapter_is_not_saved(make_model, corpus, tmp_path):
    """Its update would come back twice: in the weights and beside them."""
    run = run_of(make_model(lora=LORA), corpus)
    ml.merge_lora(run.model)
    with pytest.raises(ValueError, match="save_checkpoint: the adapter is merged"):
        save_checkpoint(run, tmp_path / "run.npz")
    assert not (tmp_path / "run.npz").exists()


def test_another_corpus_may_be_given(make_model, corpus, tmp_path, text_path):
    path = save_checkpoint(run_of(make_model(), corpus), tmp_path / "run.npz")
    text_path.unlink()
    with pytest.raises(FileNotFoundError, match=r"story\.txt"):
        load_checkpoint(path)
    assert load_checkpoint(path, corpus).corpus is corpus


# Bad files


def test_files_that_are_no_checkpoint(make_model, corpus, tmp_path):
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "nowhere.npz")
    model = ml.save_model(make_model(), tmp_path / "model.npz")
    with pytest.raises(ValueError, match=r"model\.npz holds 'model', expected 'checkpoint'"):
        load_checkpoint(model)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.7, 0.999])
def test_a_truncated_checkpoint(make_model, corpus, tmp_path, share):
    path = tmp_path / "run.npz"
    ml.train(run_of(make_model(), corpus, steps=2), path, progress=False)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match=r"run\.npz is no complete minilora file"):
        load_checkpoint(path)


class Payload:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_checkpoints_that_do_not_fit(make_model, corpus, tmp_path):
    path = tmp_path / "run.npz"
    ml.train(run_of(make_model(lora=LORA), corpus, steps=2), path, progress=False)
    arrays, header = load_arrays(path, "checkpoint")

    def refused(message, changed=None, **fields):
        save_arrays(path, arrays if changed is None else changed, {**header, **fields})
        with pytest.raises(ValueError, match=message) as error:
            load_checkpoint(path)
        assert "run.npz" in str(error.value)

    refused(r"ln_f\.bias has shape \(3,\), expected \(16,\)", {**arrays, "model.ln_f.bias": np.ones(3)})
    refused(r"missing ln_f\.bias", {k: v for k, v in arrays.items() if k != "model.ln_f.bias"})
    refused(r"m\.0: got shape \(3,\)", {**arrays, "optimizer.m.0": np.ones(3)})
    refused(r"v\.1: got nothing", {k: v for k, v in arrays.items() if k != "optimizer.v.1"})
    refused(r"unexpected .*lora_A", methods=None)
    refused("shape", config={**header["config"], "n_embd": 32})
    refused("colour", settings={"colour": 3})
    newer = {"text", "place", "python", "notes", "examples", "base", "labels"}  # than the format
    for key in set(header) - {"kind"} - newer:
        save_arrays(path, arrays, {name: value for name, value in header.items() if name != key})
        with pytest.raises(ValueError, match=rf"run\.npz: the header has no '{key}'"):
            load_checkpoint(path)

    planted = tmp_path / "planted"
    np.savez(path, **arrays, header=np.array("{}"), bad=np.array([Payload(planted)], dtype=object))
    with pytest.raises(ValueError, match=r"run\.npz is no complete minilora file: bad has dtype object"):
        load_checkpoint(path)
    assert not planted.exists()


def test_an_adapter_that_is_lost_from_a_checkpoint_is_not_read_as_a_fresh_one(make_model, corpus, tmp_path):
    """lora_A and lora_B may be absent from a base checkpoint, but not from a run that trained them."""
    path = tmp_path / "run.npz"
    ml.train(run_of(make_model(lora=LORA), corpus, steps=2), path, progress=False)
    arrays, header = load_arrays(path, "checkpoint")
    save_arrays(path, {k: v for k, v in arrays.items() if not k.endswith("up_proj.lora_B")}, header)
    with pytest.raises(ValueError, match=r"run\.npz: missing blocks\.0\.mlp\.up_proj\.lora_B"):
        load_checkpoint(path)


# The text that a run was trained on


def test_a_text_that_has_changed_is_refused(make_model, corpus, tmp_path, text_path, interrupted):
    path = tmp_path / "run.npz"
    whole = ml.train(run_of(make_model(), corpus), progress=False)
    interrupted(run_of(make_model(), StopAt.of(corpus, 3)), path)
    text = text_path.read_text()
    for changed in (text + "more", text[1:], text.replace("e", "a", 1), text[::-1]):
        text_path.write_text(changed)
        with pytest.raises(ValueError, match=r"another text than .*story\.txt' is now: the file has changed"):
            load_checkpoint(path)
    other = ml.load_corpus(text_path)
    assert load_checkpoint(path, other).corpus is other  # knowingly
    text_path.write_text(text)
    assert bits(ml.train(load_checkpoint(path), progress=False)) == bits(whole)


@pytest.mark.slow
def test_a_text_of_another_python_is_refused(make_model, tmp_path, monkeypatch):
    run = run_of(make_model(), ml.load_corpus("unicode-names"))
    path = save_checkpoint(run, tmp_path / "run.npz")
    assert load_checkpoint(path).corpus.digest == run.corpus.digest
    monkeypatch.setitem(BUILT_IN, "unicode-names", lambda: "other names\n" * 2000)
    with pytest.raises(ValueError, match=r"'unicode-names' is now: it was that of Python 3\."):
        load_checkpoint(path)


def test_a_run_goes_on_from_another_folder(make_model, text_path, tmp_path, monkeypatch):
    there, here = tmp_path / "there", tmp_path / "here"
    for folder in (there, here):
        folder.mkdir()
    (there / "story.txt").write_text(text_path.read_text())
    monkeypatch.chdir(there)
    path = save_checkpoint(run_of(make_model(), ml.load_corpus("story.txt")), tmp_path / "run.npz")
    monkeypatch.chdir(here)
    assert load_checkpoint(path).corpus.name == "story.txt"
    (here / "story.txt").write_text("another text of the same name " * 200)
    assert load_checkpoint(path).corpus.digest == ml.load_corpus(there / "story.txt").digest
    (there / "story.txt").unlink()
    with pytest.raises(ValueError, match="the file has changed"):
        load_checkpoint(path)
    (here / "story.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"'story\.txt' is neither here nor at .*there.story\.txt"):
        load_checkpoint(path)


def test_the_digest_is_of_both_parts():
    one, two, three = np.arange(5), np.arange(7), np.arange(6)
    digests = {Corpus("c", a, b).digest for a in (one, two, three) for b in (one, two, three)}
    assert len(digests) == 9
    assert Corpus("c", one, two).digest == Corpus("d", one.astype("int32"), two).digest


# What is in the file


def test_a_checkpoint_is_not_compressed_and_holds_notes(make_model, corpus, tmp_path):
    run = run_of(make_model(lora=LORA), corpus)
    run.notes = {"model": "base", "quantize": None}
    path = save_checkpoint(run, tmp_path / "run.npz")
    with zipfile.ZipFile(path) as file:
        assert {member.compress_type for member in file.infolist()} == {zipfile.ZIP_STORED}
    assert load_checkpoint(path).notes == run.notes


@pytest.mark.parametrize("kind", [{}, {"lora": LORA}, {"dtype": "float64"}])
def test_loading_draws_no_weights(kind, make_model, corpus, tmp_path, monkeypatch):
    """They would be overwritten: 300 million of them take seconds."""
    path = save_checkpoint(run_of(make_model(**kind), corpus), tmp_path / "run.npz")
    model = ml.save_model(make_model(), tmp_path / "model.npz")
    drawn, draw = [], Linear.__init__

    def watched(self, d_in, d_out, bias, rng, *std):
        drawn.append(rng.normal(0, 1, (2, 2)).any())
        draw(self, d_in, d_out, bias, rng, *std)

    monkeypatch.setattr(Linear, "__init__", watched)
    load_checkpoint(path)
    ml.load_model(model)
    assert drawn and not any(drawn)
    make_model()
    assert any(drawn)


# A real Ctrl-C, from outside

CHILD = """
import sys
import minilora as ml
from minilora.training.corpus import BUILT_IN, Corpus

class Talking(Corpus):
    def batch(self, *args):
        print("step", flush=True)
        return super().batch(*args)

text = ml.load_corpus(sys.argv[1])
text = Talking(text.name, text.train, text.validation)
for n in range(3):  # as a cell in a notebook does
    run = ml.Run(ml.GPT(ml.GPTConfig(96, 12, 1, 2, 16)), text, ml.Settings(steps=100_000, evaluation_windows=2))
    try:
        ml.train(run, sys.argv[2], progress=False)
    except KeyboardInterrupt:
        print("interrupted" if run.interrupted else "done", run.step, run.saved, n, flush=True)
        raise
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals for one process")
@pytest.mark.parametrize(
    "signals", [["SIGINT"], ["SIGTERM"], ["SIGHUP"], ["SIGTERM", "SIGHUP"], ["SIGINT", "SIGTERM", "SIGHUP", "SIGTERM"]]
)
def test_a_process_that_is_told_to_end_leaves_a_checkpoint(signals, text_path, tmp_path):
    path: Path = tmp_path / "run.npz"
    command = [sys.executable, "-c", CHILD, str(text_path), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            for _ in range(3):
                assert child.stdout.readline() == "step\n"
            for name in signals:
                child.send_signal(getattr(signal, name))
            out, err = child.communicate(timeout=60)
        finally:
            child.kill()
    assert child.returncode == -signal.SIGINT and err.endswith("KeyboardInterrupt\n"), err
    word, steps, saved, n = out.split("\n")[-2].split()
    assert word == "interrupted" and steps == saved and n == "0"  # the second run of the loop was not begun
    assert list(tmp_path.glob(".*")) == []
    run = load_checkpoint(path)
    assert run.step == int(steps) >= 3
    run.settings.steps = run.step + 2
    assert ml.train(run, path, progress=False).step == int(steps) + 2


LLAMA = {
    "model_type": "llama", "vocab_size": 96, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
    "num_attention_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip


def llama(seed=0):
    return ml.Transformer(find(LLAMA), rng=seed)


@pytest.mark.parametrize("method", ["lora", "full", "last-blocks"])
def test_a_model_with_files_of_its_own_is_given_to_its_checkpoint(tmp_path, corpus, method):
    """Which holds what is trained alone, and goes on bit for bit."""
    model, path = llama(), tmp_path / "run.npz"
    if method != "full":
        ml.add_adapter(model, LORA if method == "lora" else ml.LastBlocksConfig(blocks=1))
    whole = run_of(model, corpus, steps=4)
    whole.settings.steps = 2
    save_checkpoint(ml.train(whole, progress=False), path)
    going = load_checkpoint(path, base=llama())
    for run in (whole, going):
        run.settings.steps = 4
        ml.train(run, progress=False)
    assert bits(whole)[0] == bits(going)[0] and bits(whole)[1:5] == bits(going)[1:5]
    held = [name for name in load_arrays(path, "checkpoint")[0] if name.startswith("model.")]
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert not {name.removeprefix("model.") for name in held} & {*frozen}


def test_a_checkpoint_and_another_base(tmp_path, corpus):
    path = tmp_path / "run.npz"
    run = run_of(ml.add_adapter(llama(), LORA), corpus, steps=1)
    save_checkpoint(ml.train(run, progress=False), path)
    for base in (None, ml.GPT(ml.GPTConfig(96, 8, 1, 1, 4)), "llama"):
        with pytest.raises(
            ValueError, match=r"run.npz: it holds what was trained, and not the model it was trained on"
        ):
            load_checkpoint(path, base=base)
    other = llama(1)
    for base in (other, ml.add_adapter(llama(), LORA)):
        with pytest.raises(
            ValueError, match=r"run.npz: the base is another model, or is held in another precision, than"
        ):
            load_checkpoint(path, base=base)
    assert not getattr(other, "adapters", None)

"""The model and adapter files that commands are given."""

import re

import numpy as np
import pytest
from lines import finetune, the_error

from minilora.commands.main import main
from minilora.nn.storage import load_arrays


def test_files_of_another_kind_are_refused(base, capsys):
    finetune("--output", "adapter.npz")
    assert "'adapter', expected 'model'" in the_error(capsys, "generate", "--model", "adapter.npz")
    assert "expected 'adapter'" in the_error(capsys, "merge", "--model", "base.npz", "--adapter", "base.npz")
    base.write_bytes(base.read_bytes()[:500])
    assert "base.npz" in the_error(capsys, "generate", "--model", "base.npz")


def test_a_name_close_to_a_file_is_suggested(base, capsys):
    assert "did you mean 'base.npz'?" in the_error(capsys, "generate", "--model", "bse.npz")


# --- models that others trained ---


def said(capsys, *argv):
    """What a command prints."""
    capsys.readouterr()
    assert main([*argv]) == 0
    return capsys.readouterr().out


def test_a_folder_is_a_model_in_every_command(folder, capsys):
    """Fine-tuned, written with, merged: the merged folder writes what the model with its adapter writes."""
    quick = ["--steps", "2", "--rank", "2", "--lr", "0.05", "--window", "16", "--batch", "2"]
    trained = said(capsys, "finetune", "--model", "llama", "--corpus", "text.txt", *quick, "--output", "a.npz")
    assert "2 x 16 tokens" in trained and "in nats per token" in trained and "held out" in trained
    assert "use it            minilora generate --model llama --adapter a.npz" in trained
    write = ["--prompt", "The quick", "--tokens", "12", "--temperature", "0"]
    adapted = said(capsys, "generate", "--model", "llama", "--adapter", "a.npz", *write)
    assert adapted.startswith("The quick")
    merged = said(capsys, "merge", "--model", "llama", "--adapter", "a.npz", "--output", "merged")
    assert "into 14 layers of llama" in merged and (folder.parent / "merged" / "model.safetensors").is_file()
    assert said(capsys, "generate", "--model", "merged", *write) == adapted
    assert said(capsys, "generate", "--model", "llama", *write) != adapted
    assert "llama" in said(capsys, "count", "llama")


def test_how_its_weights_are_held(folder, capsys):
    write = ["--prompt", "The quick", "--tokens", "3", "--temperature", "0"]
    for how in (["--dtype", "bfloat16"], ["--dtype", "file"], ["--quantize", "int8"]):
        assert said(capsys, "generate", "--model", "llama", *how, *write).startswith("The quick")
    error = the_error(capsys, "generate", "--model", "llama", "--quantize", "nf4", "--dtype", "file")
    assert "--quantize nf4 cannot be given with --dtype file" in error
    assert "--dtype file cannot be given with --model base, which is held in float32" in the_error(
        capsys, "generate", "--dtype", "file"
    )
    error = the_error(capsys, "finetune", "--model", "llama", "--dtype", "bfloat16", "--method", "full")
    assert "--dtype bfloat16 --method full: weights held in 16 bits or fewer stay frozen" in error


@pytest.mark.slow
def test_an_adapter_says_how_its_base_was_held(folder, capsys):
    quick = ["finetune", "--model", "llama", "--corpus", "text.txt", "--steps", "1", "--rank", "2", "--window", "16"]
    for how in (["--dtype", "bfloat16"], ["--quantize", "int8"]):
        trained = said(capsys, *quick, *how, "--output", "a.npz")
        assert f"minilora generate --model llama {' '.join(how)} --adapter a.npz" in trained
        error = the_error(capsys, "generate", "--model", "llama", "--adapter", "a.npz")
        assert error.rstrip().endswith(f"here: {' '.join(how)}") and how[1] in error


def test_the_models_own_folder_is_not_written_into(folder, capsys):
    (folder.parent / "a.npz").write_bytes(b"")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    error = the_error(capsys, "merge", "--model", "llama", "--adapter", "a.npz", "--output", "llama/")
    assert "--output 'llama' would overwrite the model 'llama'" in error
    full = [
        "finetune",
        "--model",
        "llama",
        "--corpus",
        "text.txt",
        "--method",
        "full",
        "--steps",
        "1",
        "--window",
        "16",
    ]
    assert "would overwrite the model 'llama'" in the_error(capsys, *full, "--output", "llama")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_chat_is_answered(folder, capsys):
    answer = said(capsys, "generate", "--model", "llama", "--chat", "--prompt", "Hello", "--tokens", "5", "--seed", "3")
    assert "Hello" not in answer and "<|im_start|>" not in answer
    (folder / "tokenizer_config.json").write_text("{}")
    assert "has no chat template" in the_error(capsys, "generate", "--model", "llama", "--chat")
    assert "has no chat template" in the_error(capsys, "generate", "--chat")


def test_a_prompt_that_is_longer_than_the_context(folder, capsys):
    error = the_error(capsys, "generate", "--model", "llama", "--prompt", "~" * 65)
    assert "--prompt has 65 tokens, more than the model's context of 64" in error


def test_a_model_without_a_tokenizer_reads_no_text(folder, capsys):
    (folder / "tokenizer.json").unlink()
    assert "llama comes without a tokenizer" in the_error(capsys, "generate", "--model", "llama")
    assert "llama comes without a tokenizer" in the_error(capsys, "finetune", "--model", "llama")


def test_a_model_that_was_not_fetched_says_the_command(here, capsys, monkeypatch):
    monkeypatch.setenv("MINILORA_CACHE", str(here / "empty"))
    for command in ("generate", "finetune", "merge", "evaluate"):
        (here / "a.npz").write_bytes(b"") if command == "merge" else None
        more = ["--adapter", "a.npz"] if command == "merge" else []
        error = the_error(capsys, command, "--model", "smollm2-135m", *more)
        assert "minilora fetch smollm2-135m gets it" in error
    assert "did you mean 'smollm2-135m'?" in the_error(capsys, "generate", "--model", "smolm2-135m")


@pytest.mark.slow
def test_a_run_on_a_folder_goes_on_from_its_checkpoint(folder, capsys):
    """The checkpoint holds what was trained, not the model; the end is bit for bit that of a run that never stopped."""
    run = ["finetune", "--model", "llama", "--corpus", "text.txt", "--rank", "2", "--window", "16", "--batch", "2"]
    run += ["--steps", "4", "--checkpoint-every", "2"]
    said(capsys, *run, "--output", "whole.npz", "--checkpoint", "half.npz")
    header = load_arrays("half.npz", "checkpoint")[1]
    assert header["config"] is None and header["base"]["trained"] == []
    from minilora.training import checkpoint, loop

    kept = loop.save_checkpoint

    def stops(going, path):
        kept(going, path)
        if going.step == 2:
            raise KeyboardInterrupt

    loop.save_checkpoint = stops
    try:
        assert main([*run, "--output", "again.npz", "--checkpoint", "stopped.npz"]) == 130
    finally:
        loop.save_checkpoint = checkpoint.save_checkpoint
    assert "step" in said(capsys, "finetune", "--resume", "stopped.npz", "--output", "again.npz")
    for one, other in zip(
        *(load_arrays(name, "adapter")[0].items() for name in ("whole.npz", "again.npz")), strict=True
    ):
        np.testing.assert_array_equal(one[1], other[1])


@pytest.mark.model
def test_the_fetched_model_writes_and_is_adapted(smollm2, here, capsys):
    write = ["--prompt", "The capital of France is", "--tokens", "4", "--temperature", "0"]
    assert said(capsys, "generate", "--model", "smollm2-135m", *write).startswith("The capital of France is Paris")
    run = ["finetune", "--model", "smollm2-135m", "--corpus", "text.txt", "--rank", "2", "--targets", "q_proj,v_proj"]
    run += ["--steps", "4", "--window", "32", "--checkpoint", "run.npz", "--output", "a.npz"]
    trained = said(capsys, *run)
    before, after = re.search(
        r"validation loss   (\S+) before, (\S+) after 4 steps, in nats per token", trained
    ).groups()
    assert float(after) < float(before)
    assert (here / "run.npz").stat().st_size < smollm2.stat().st_size / 20  # what was trained, not the model
    adapted = said(capsys, "generate", "--model", "smollm2-135m", "--adapter", "a.npz", "--dtype", "float32", *write)
    assert adapted.startswith("The capital of France is")


def test_a_folder_that_is_no_adapter_and_a_result_that_is_no_folder(folder, capsys):
    line = the_error(capsys, "generate", "--model", "llama", "--adapter", "llama", "--prompt", "x")
    assert "llama is a folder, expected an adapter file, or PEFT's folder, which has an adapter_config.json" in line
    line = the_error(capsys, "finetune", "--model", "llama", "--method", "full", "--output", "x.npz")
    assert "--output: got 'x.npz', expected a folder: a model that others trained is one" in line

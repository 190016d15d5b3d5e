"""`minilora finetune`: every method's file is one that the other commands take."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tiny_tokenizers
from lines import QUICK, SIZES, finetune, the_error

import minilora as ml
from minilora.adapters.state import active_adapter
from minilora.commands.main import main
from minilora.nn.architectures import find
from minilora.nn.characters import CHARACTERS
from minilora.training.checkpoint import load_checkpoint


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


def test_several_batches_a_step(base, capsys):
    assert finetune("--accumulate", "3", "--output", "a.npz") == 0
    assert "steps             4 of 3 x 2 x 16 characters" in capsys.readouterr().out
    assert "--accumulate: got '0', expected a whole number, 1 or more" in the_error(
        capsys, "finetune", "--accumulate", "0"
    )
    assert finetune("--batch", "6", "--output", "b.npz") == 0
    a, b = (ml.load_adapter(ml.load_model(base), name).state_dict() for name in ("a.npz", "b.npz"))
    assert all(np.abs(a[name] - b[name]).max() < 1e-6 for name in a)


def test_pairs_from_a_file(base, capsys):
    """A run on pairs stops, goes on from its checkpoint with the same pairs, and makes an adapter as any other."""
    lines = [{"prompt": f"{n} + 1 = ", "completion": f"{n + 1}.\n"} for n in range(20)]
    Path("sums.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    options = ["--model", "base.npz", "--batch", "3", "--steps", "4", "--corpus", "sums.jsonl"]
    assert main(["finetune", *options, "--output", "a.npz"]) == 0
    out = capsys.readouterr().out
    assert "corpus            sums.jsonl: 18 pairs, 2 held out; " in out and "4 of 3 pairs, learning rate" in out
    assert "after 4 steps, in nats per token of the answers" in out
    run = ml.Run(ml.load_adapter(ml.load_model(base), "a.npz"), ml.load_pairs("sums.jsonl", CHARACTERS, 16))
    assert f"{run.corpus.extent}" in out
    Path("wrong.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"text": "c"}\n')
    line = the_error(capsys, "finetune", *options[:-1], "wrong.jsonl")
    assert "wrong.jsonl, line 2: no 'completion' and no 'prompt'; it has 'text', expected prompt and completion" in line


@pytest.mark.slow
def test_a_run_on_pairs_goes_on(base, capsys):
    lines = [{"prompt": f"{n} + 1 = ", "completion": f"{n + 1}.\n"} for n in range(20)]
    Path("sums.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    options = ["--model", "base.npz", "--batch", "3", "--corpus", "sums.jsonl", "--steps", "4"]
    assert main(["finetune", *options, "--output", "a.npz", "--checkpoint", "run.npz"]) == 0
    run = load_checkpoint("run.npz")
    assert run.step == 4 and run.corpus.digest == ml.load_pairs("sums.jsonl", CHARACTERS, 16).digest
    assert main(["finetune", "--resume", "run.npz", "--output", "b.npz"]) == 0
    assert Path("a.npz").read_bytes() == Path("b.npz").read_bytes()


def test_labels_from_a_file(base, capsys):
    """The head is trained beside LoRA, kept in its file, and there again where that is loaded."""
    rows = [{"text": f"{label} {n}", "label": label} for n in range(10) for label in ("red", "green")]
    Path("colours.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    options = ["--task", "classify", "--model", "base.npz", "--corpus", "colours.jsonl"]
    options += ["--steps", "4", "--batch", "4"]
    assert main(["finetune", *options, "--output", "a.npz"]) == 0
    out = capsys.readouterr().out
    assert (
        "corpus            colours.jsonl: 18 texts, 2 held out; " in out and "steps             4 of 4 texts, " in out
    )
    assert "in nats per label\nright labels      " in out and "% of 2 (95 % interval " in out and "; always " in out
    assert "use it            ml.classify(ml.load_adapter(model, 'a.npz'), texts)" in out
    model = ml.load_adapter(ml.load_model(base), "a.npz")
    assert model.labels == ("green", "red") and set(ml.classify(model, ["red 1", "green 2"])) <= {"green", "red"}
    assert main(["finetune", *options, "--method", "full", "--output", "b.npz"]) == 0
    assert "ml.classify(ml.load_model('b.npz'), texts)" in capsys.readouterr().out
    assert ml.load_model("b.npz").labels == ("green", "red")
    line = the_error(capsys, "finetune", *options, "--method", "houlsby")
    assert "--task classify --method houlsby: lora and what is made like it, ia3, prompt, prefix and full train" in line
    assert main(["finetune", *options, "--method", "prompt", "--virtual", "2", "--output", "c.npz"]) == 0
    assert ml.load_adapter(ml.load_model(base), "c.npz").labels == ("green", "red")
    line = the_error(capsys, "finetune", *options[:-5], "text.txt")
    assert "--task classify --corpus text.txt: expected a .jsonl file" in line
    assert "--task: got 'sing'; there are" in the_error(capsys, "finetune", "--task", "sing")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, head", [("bert-base", "masked"), ("roberta-base", "none"), ("distilbert-base", "labels")]
)
def test_labels_on_an_encoder_that_others_trained(here, capsys, name, head):
    """Whatever head its files have; what is new is in the adapter's file, or in the folder of full training."""
    a, rows, tokens = find(name), here / "colours.jsonl", len(tiny_tokenizers.trained()[0])
    a = dataclasses.replace(a, vocab_size=tokens, width=8, layers=1, heads=2, mlp_width=12)
    a = dataclasses.replace(a, head=head, labels=2 * (head == "labels"), pooler=a.pooler and head == "none")
    ml.save_pretrained(ml.Transformer(a), "encoder")
    tiny_tokenizers.write_folder(here / "encoder", {"eos_token": "<|im_end|>"})
    texts = ({"text": f"{label} {n}", "label": label} for n in range(10) for label in ("red", "green"))
    rows.write_text("".join(f"{json.dumps(row)}\n" for row in texts))
    options = ["--task", "classify", "--model", "encoder", "--corpus", "colours.jsonl", "--steps", "3", "--lr", "0.1"]
    assert main(["finetune", *options, "--output", "a.npz"]) == 0
    assert "right labels      " in capsys.readouterr().out
    model = ml.load_adapter(ml.load_pretrained("encoder"), "a.npz")
    assert model.labels == ("green", "red") and model.architecture.head == "labels"
    saved = {"classifier", "pooler"} if (name, head) == ("bert-base", "masked") else {"classifier"}
    assert {*active_adapter(model).configs[0].modules_to_save} == saved
    assert main(["merge", "--model", "encoder", "--adapter", "a.npz", "--output", "merged"]) == 0
    assert "use it            ml.classify(ml.load_pretrained('merged'), texts)" in capsys.readouterr().out
    assert ml.classify(ml.load_pretrained("merged"), ["red 1", "green 2"]) == ml.classify(model, ["red 1", "green 2"])
    ml.save_adapter(model, "peft", format="peft")
    if saved > {"classifier"}:
        with pytest.raises(ValueError, match=r"it holds bert\.pooler\.dense, a head for labels: ml\.add_classifier"):
            ml.load_adapter(ml.load_pretrained("encoder"), "peft")
    virtual = ["--method", "prefix", "--virtual", "2"]
    assert main(["finetune", *options, *virtual, "--output", "v.npz"]) == 0
    model = ml.load_adapter(ml.load_pretrained("encoder"), "v.npz")
    assert model.labels == ("green", "red") and {*active_adapter(model).configs[0].modules_to_save} == saved
    assert main(["finetune", *options, "--method", "full", "--output", "b"]) == 0
    again = ml.load_pretrained("b")
    assert again.labels == ("green", "red") and set(ml.classify(again, ["red 1"])) <= {"green", "red"}
    line = the_error(capsys, "finetune", "--model", "encoder", "--corpus", "colours.txt", "--steps", "1")
    assert "no text" in line or "colours.txt" in line
    (here / "colours.txt").write_text("red green " * 300)
    line = the_error(capsys, "finetune", "--model", "encoder", "--corpus", "colours.txt", "--steps", "1")
    assert "is an encoder, which sees it; give it texts with labels" in line


def test_a_head_that_no_folder_would_hold_costs_nothing(folder, capsys):
    line = the_error(capsys, "finetune", "--model", "llama", "--task", "classify", "--method", "full")
    assert "a decoder that others trained is written without a head for labels; use lora" in line


def test_blocks_computed_again(base, capsys):
    for name, more in (("a.npz", []), ("b.npz", ["--checkpoint-blocks"])):
        assert finetune(*more, "--lora-dropout", "0.1", "--output", name) == 0
    assert Path("a.npz").read_bytes() == Path("b.npz").read_bytes()
    prefix = ["--method", "prefix", "--virtual", "3", "--model", "base.npz", "--corpus", "text.txt"]
    line = the_error(capsys, "finetune", *prefix, "--checkpoint-blocks")
    assert "checkpoint_blocks = True, but the blocks cannot be computed again: virtual tokens are cached" in line


OTHERS = {"dora": [], "houlsby": ["--bottleneck", "2"], "pfeiffer": [], "prompt": ["--virtual", "3"], "bitfit": []}
OTHERS |= {"prefix": ["--virtual", "3"], "last-blocks": ["--blocks", "1"], "lora-fa": [], "miss": ["--rank", "3"]}
OTHERS |= {"vera": ["--targets", "q_proj,up_proj"], "ia3": [], "lora": ["--init", "lora-ga", "--rank", "2"]}


@pytest.mark.slow
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
    for command in ("generate", "merge"):
        line = the_error(capsys, command, *chosen)
        assert "trained on another base model" in line and line.endswith("here: --quantize nf4")
        assert "here: --quantize nf4" in the_error(capsys, command, *chosen, "--quantize", "int8")
    finetune("--output", "floats.npz")
    line = the_error(capsys, "merge", *chosen[:2], "--adapter", "floats.npz", "--quantize", "nf4")
    assert "trained on floats, this model holds nf4" in line and line.endswith("here: leave out --quantize, --dtype")
    assert main(["merge", *chosen, "--quantize", "nf4", "--output", "merged.npz"]) == 0
    full = ["finetune", "--model", "base.npz", "--corpus", "text.txt", "--method", "full", "--quantize", "nf4"]
    assert "quantised weights cannot be trained" in the_error(capsys, *full)


def test_an_adapter_of_another_base_is_refused(base, capsys):
    finetune("--output", "adapter.npz")
    main(["pretrain", "--corpus", "text.txt", *SIZES, *QUICK, "--seed", "5", "--output", "other.npz"])
    assert "another base model" in the_error(capsys, "merge", "--model", "other.npz", "--adapter", "adapter.npz")


def test_a_diverging_loss_is_one_line(base, capsys):
    line = the_error(
        capsys, "finetune", "--model", "base.npz", "--corpus", "text.txt", "--method", "full",
        "--lr", "1e6", "--steps", "60", "--batch", "2", "--output", "x.npz",
    )  # fmt: skip
    assert "training diverged at step" in line

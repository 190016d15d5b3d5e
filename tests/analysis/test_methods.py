"""What methods train: by name and shape beside the adapters' own modules, and as minilora's own files say it."""

import numpy as np
import pytest

import minilora as ml
from minilora.adapters.adapter import METHODS as ADAPTERS
from minilora.adapters.state import adapter_parameters
from minilora.analysis import counting, methods
from minilora.commands.main import main
from minilora.nn.storage import load_arrays, save_arrays
from minilora.training.checkpoint import save_checkpoint

CONFIG = ml.GPTConfig(96, 16, 2, 2, 8)
CASES = {
    "lora": (ml.LoRAConfig(rank=2, target_modules=("*_proj",)), {"rank": 2, "target_modules": ("*_proj",)}),
    "dora": (ml.DoRAConfig(rank=3, target_modules=("v_proj",)), {"rank": 3, "target_modules": ("v_proj",)}),
    "houlsby": (ml.HoulsbyConfig(1), {"bottleneck": 1}),
    "pfeiffer": (ml.PfeifferConfig(3, adapter_norm=True), {"bottleneck": 3, "adapter_norm": True}),
    "prompt": (ml.PromptConfig(3), {"tokens": 3}),
    "prefix": (ml.PrefixConfig(5), {"tokens": 5}),
    "bitfit": (ml.BitFitConfig(), {}),
    "last-blocks": (ml.LastBlocksConfig(1), {"blocks": 1}),
    "full": (ml.FullConfig(), {}),
    "lora-fa": (ml.LoRAFAConfig(rank=2), {"rank": 2}),
    "vera": (ml.VeRAConfig(rank=5, target_modules="*"), {"rank": 5, "target_modules": ("*",)}),
    "miss": (ml.MiSSConfig(rank=3), {"rank": 3}),
    "ia3": (ml.IA3Config(), {}),
}  # fmt: skip


def test_every_method_is_counted():
    assert set(CASES) == set(counting.METHODS) == set(ADAPTERS)


@pytest.fixture(params=CASES)
def case(request):
    """A method, its sizes for a count, and a model that has it."""
    config, sizes = CASES[request.param]
    return request.param, sizes, ml.add_adapter(ml.GPT(CONFIG), config)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """run(model): one that has not begun."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the cat sat on a mat and saw " * 200)
    corpus = ml.load_corpus(path)
    return lambda model: ml.Run(model, corpus, ml.Settings(steps=1, batch_size=1))


def test_names_and_shapes_are_the_adapters_own(case):
    method, sizes, model = case
    plan = counting.plan(CONFIG, method, **sizes)
    assert plan.trainable == {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    assert set(plan.added) | set(plan.frozen) == set(adapter_parameters(model)) - set(plan.base)
    assert plan.virtual == sizes.get("tokens", 0)


def test_an_adapters_file_is_counted_as_what_it_holds(case, tmp_path):
    """No option need be given; the ones that say the same as the file may be, others are refused."""
    method, sizes, model = case
    path = ml.save_adapter(model, tmp_path / "some.npz")
    record = counting.count(path)
    assert (
        record
        == counting.count(str(path), method, **sizes)
        == {**counting.count(CONFIG, method, **sizes), "model": "some"}
    )
    assert record.total_parameters == model.count() and record.trainable_parameters == model.count(trainable=True)
    assert counting.plan(path).trainable == counting.plan(CONFIG, method, **sizes).trainable
    assert counting.operations(path) == counting.operations(CONFIG, method, **sizes)
    assert counting.table(path).startswith(f"some: {methods.describe(counting.plan(CONFIG, method, **sizes))}\n")
    other = "full" if method == "prompt" else "prompt"
    with pytest.raises(ValueError, match=f"method = '{other}', but .*some.npz holds {method}"):
        counting.count(path, other)
    with pytest.raises(ValueError, match=f"rank = 7, but .*some.npz holds {method}"):
        counting.count(path, rank=7)
    assert [r.model for r in counting.compare_records(path, tokens=2, rank=2)] == ["some"] * len(ADAPTERS)  # its base


def test_a_checkpoint_is_counted_as_the_run_it_holds(case, run, tmp_path):
    method, sizes, model = case
    path = save_checkpoint(run(model), tmp_path / "some.npz")
    record = counting.count(path)
    assert (record.method, record.total_parameters) == (method, model.count())
    assert record.trainable_parameters == model.count(trainable=True)
    assert record == {**counting.count(CONFIG, method, **sizes), "model": "some"}


def test_a_models_file_is_counted_by_any_method(tmp_path):
    path = ml.save_model(ml.GPT(CONFIG), tmp_path / "mine.npz", dtype="float16")
    assert counting.find(path) == counting.from_gpt_config(CONFIG, "mine")
    assert counting.count(path, "prefix", tokens=3) == {**counting.count(CONFIG, "prefix", tokens=3), "model": "mine"}


def test_a_run_of_all_weights_of_a_network_and_of_several_methods(run, tmp_path):
    counted = lambda model: counting.count(save_checkpoint(run(model), tmp_path / "a.npz"))
    plain = counted(model := ml.GPT(CONFIG))
    assert (plain.method, plain.trainable_parameters, plain.total_parameters) == ("full", model.count(), model.count())
    network = counted(model := ml.add_adapter(ml.GPT(CONFIG), ml.PrefixConfig(5, hidden=4)))
    assert (network.method, network.total_parameters) == ("prefix", model.count())  # the network counts while it trains
    assert counting.plan(tmp_path / "a.npz").virtual == 5
    both = ml.add_adapter(ml.GPT(CONFIG), [ml.LoRAConfig(rank=2), ml.HoulsbyConfig(3)])
    path = ml.save_adapter(both, tmp_path / "b.npz")
    record = counting.count(path)
    assert (record.method, record.rank, record.total_parameters) == ("lora + houlsby", 2, both.count())
    assert record.trainable_parameters == both.count(trainable=True) and not counting.plan(path).mergeable
    assert counting.table(path).startswith("b: lora, rank 2 on q_proj, v_proj + houlsby, bottleneck 3\n")


def test_a_run_with_one_of_several_adapters_and_with_several_at_once(run, tmp_path):
    model = ml.add_lora(ml.GPT(CONFIG), ml.LoRAConfig(rank=2), name="a")
    ml.add_lora(model, ml.LoRAConfig(rank=3), name="b")
    record = counting.count(save_checkpoint(run(model), tmp_path / "b.npz"))
    assert (record.rank, record.trainable_parameters) == (3, model.count(trainable=True))
    ml.set_adapter(model, ["a", "b"])
    with pytest.raises(ValueError, match=r"both.npz: a, b are in use together; save_adapter each"):
        counting.count(save_checkpoint(run(model), tmp_path / "both.npz"))


@pytest.mark.parametrize("kind, bits", [("int8", 8), ("nf4", 4), ("int4", 4)])
def test_a_quantised_base_is_counted_whole_in_its_bits(kind, bits, run, tmp_path):
    model = ml.quantize_model(ml.GPT(ml.GPTConfig(96, 16, 2, 2, 64)), kind)
    ml.add_lora(model, ml.LoRAConfig(rank=4))
    paths = save_checkpoint(run(model), tmp_path / "run.npz"), ml.save_adapter(model, tmp_path / "adapter.npz")
    for path in paths:
        assert counting.plan(path).bits == bits
        record, same = counting.count(path), counting.count(ml.GPTConfig(96, 16, 2, 2, 64), bits=bits)
        assert record == {**same, "model": path.stem}
        assert record.trainable_parameters == model.count(trainable=True)
        assert counting.count(path, bits=32).training_memory_bytes["weights"] == 4 * record.total_parameters


def changed(path, target, change):
    """The same file with another header or other arrays."""
    arrays, header = load_arrays(path, None)
    change(arrays, header)
    return save_arrays(target, arrays, header)


DAMAGED = {
    "layers": (lambda a, h: h["config"].update(n_layer=200_000), "layers = 200000, expected at most 2,000"),
    "width": (lambda a, h: h["config"].update(n_embd=8192), r"\(96, 8\) for .*wte.weight, .* has \(96, 8192\)"),
    "no config": (lambda a, h: h.pop("config"), "does not say which model it belongs to"),
    "odd config": (lambda a, h: h.update(config={"n_embd": 8}), "vocab_size"),
    "kind": (lambda a, h: h.update(kind="recipe"), "it holds 'recipe', expected a model, an adapter or a checkpoint"),
    "no kind": (lambda a, h: h.pop("kind"), "it holds None, expected a model"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_file_that_does_not_fit_itself_is_one_line(damage, tmp_path, capsys):
    change, words = DAMAGED[damage]
    path = changed(ml.save_model(ml.GPT(CONFIG), tmp_path / "a.npz"), tmp_path / "b.npz", change)
    with pytest.raises(ValueError, match=rf"b.npz: .*{words}") as error:
        counting.count(path)
    assert "\n" not in str(error.value)
    assert main(["count", str(path)]) == 2
    assert capsys.readouterr().err.startswith("minilora: error: ")


def test_a_model_that_lacks_an_array_and_an_adapter_of_an_older_file(tmp_path):
    model = ml.GPT(CONFIG)
    path = changed(ml.save_model(model, tmp_path / "a.npz"), tmp_path / "b.npz", lambda a, h: a.pop("ln_f.weight"))
    with pytest.raises(ValueError, match=r"it has nothing for ln_f\.weight"):
        counting.find(path)
    ml.add_lora(model, ml.LoRAConfig())
    path = changed(ml.save_adapter(model, tmp_path / "c.npz"), tmp_path / "d.npz", lambda a, h: h.pop("config"))
    with pytest.raises(ValueError, match="does not say which model it belongs to"):
        counting.count(path)
    ml.load_adapter(ml.remove_lora(model), path)  # which it can be put on all the same
    with pytest.raises(FileNotFoundError):
        counting.count(tmp_path / "none.npz")
    (tmp_path / "e.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match="is no complete minilora file"):
        counting.count(tmp_path / "e.npz")


def test_a_regular_expression_is_counted_as_the_adapter_reads_it(tmp_path):
    wanted = r"blocks\.1\.attn\.(q|v)_proj"
    model = ml.add_lora(ml.GPT(CONFIG), ml.LoRAConfig(rank=2, target_modules=wanted))
    record = counting.count(CONFIG, rank=2, target_modules=wanted)
    assert (record.target_modules, record.trainable_parameters) == (wanted, model.count(trainable=True))
    stored = counting.count(ml.save_adapter(model, tmp_path / "a.npz"))
    assert stored == {**record, "model": "a"}
    assert methods.describe(counting.plan(CONFIG, rank=2, target_modules=wanted)) == f"lora, rank 2 on {wanted}"
    with pytest.raises(ValueError, match=r"count: target_modules = .* is no regular expression"):
        counting.plan(CONFIG, target_modules="(q_proj")


def test_a_method_is_described_by_the_sizes_it_uses():
    said = {method: methods.describe(counting.plan(CONFIG, method, **sizes)) for method, (_, sizes) in CASES.items()}
    assert said == {
        "lora": "lora, rank 2 on *_proj", "dora": "dora, rank 3 on v_proj", "houlsby": "houlsby, bottleneck 1",
        "pfeiffer": "pfeiffer, bottleneck 3 with a norm", "prompt": "prompt, 3 tokens", "prefix": "prefix, 5 tokens",
        "bitfit": "bitfit", "last-blocks": "last-blocks, 1 of 2", "full": "full",
        "lora-fa": "lora-fa, rank 2 on q_proj, v_proj", "vera": "vera, rank 5 on *",
        "miss": "miss, rank 3 on q_proj, v_proj", "ia3": "ia3, 6 vectors",
    }  # fmt: skip
    merge = {method for method, (_, sizes) in CASES.items() if counting.plan(CONFIG, method, **sizes).mergeable}
    assert merge == set(CASES) - {"prompt", "prefix", "houlsby", "pfeiffer"}
    assert counting.plan(CONFIG, "lora", rank=8).trainable["blocks.0.attn.q_proj.lora_A"] == (8, 8)
    with pytest.raises(ValueError, match=r"lora: rank 9 exceeds min\(d_in, d_out\) = 8 of blocks.0.mlp.up_proj"):
        counting.plan(CONFIG, "lora", rank=9, target_modules=("up_proj",))
    with pytest.raises(
        ValueError, match="prompt: 16 virtual tokens leave no room for a text in the context of GPT, 16"
    ):
        counting.plan(CONFIG, "prompt", tokens=16)
    assert counting.plan(CONFIG, "prompt", tokens=15).virtual == 15


def test_the_command_counts_a_file(tmp_path, capsys):
    path = ml.save_adapter(ml.add_lora(ml.GPT(CONFIG), ml.LoRAConfig(rank=2)), tmp_path / "mine.npz")
    assert main(["count", str(path)]) == 0
    assert capsys.readouterr().out.startswith("mine: lora, rank 2 on q_proj, v_proj\n")
    assert main(["count", str(path), "--compare", "--tokens", "2"]) == 0
    assert capsys.readouterr().out.startswith("mine: 2,656 parameters\n")


def test_a_running_model_is_counted_as_its_architecture_is():
    """Quantised weights, too: 2,040 numbers are 2,040, in whatever bits; what two places share counts once."""
    model = ml.quantize_model(ml.GPT(ml.GPTConfig(9, 16, 1, 1, 64)), "nf4")
    ml.add_lora(model, ml.LoRAConfig(rank=2))
    walked, counted = counting.count_model(model), counting.count(model, rank=2)
    assert {key: counted[key] for key in walked} == {**walked, "checkpoint_bytes": 4 * walked.trainable_parameters}
    for odd in (None, 3, "base", [model]):
        with pytest.raises(TypeError, match=r"count_model: got .*expected a model"):
            counting.count_model(odd)


@pytest.mark.parametrize("model", [None, 3, [1], b"base", object(), {"base"}])
def test_what_is_no_model_is_named(model):
    with pytest.raises(ValueError, match="unknown model "):
        counting.count(model)


def test_what_is_no_method_and_no_option_is_named():
    for method in (None, ["lora"], 3):
        with pytest.raises((TypeError, ValueError), match=r"count: method = .*, expected|unknown method .*; there are"):
            counting.count("gpt2", method)
        with pytest.raises(ValueError, match=r"unknown method .*; there are full"):
            methods.plan("gpt2", method)
    with pytest.raises(TypeError, match=r"count: no option 'alpha'; there are rank, target_modules, bottleneck"):
        counting.count("gpt2", alpha=3)


BAD_OPTIONS = {
    "rank": (0, -1, 2.0, "2", None, True, np.float64(2)), "bottleneck": (0, 1.5, "8"), "tokens": (0, None, [3]),
    "blocks": (0, -2, 2.5), "target_modules": ((), ("",), [""], ("q_proj", ""), "", 3, None, (3,), {"q_proj": 1}),
    "adapter_norm": (1, "yes", None),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_options_are_checked_whatever_the_method(name):
    for value in BAD_OPTIONS[name]:
        with pytest.raises(ValueError, match=f"count: {name} (=|is empty)"):
            counting.plan(CONFIG, "full", **{name: value})

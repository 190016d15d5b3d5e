"""PEFT's folders both ways, on tiny random models of every family: PEFT writes and we read, we write and PEFT reads."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

import minilora as ml
from minilora.adapters.state import adapter_parameters
from minilora.interop.peft_modules import Theirs
from minilora.nn.architectures import from_hugging_face

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
peft = pytest.importorskip("peft", reason="this test needs PEFT: pip install 'minilora[peers]'")
transformers = pytest.importorskip("transformers", reason="this test needs transformers: pip install 'minilora[peers]'")
load_file = pytest.importorskip("safetensors.numpy").load_file

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT has much to say of tied tables and of files it cannot find
BAR = 3e-6  # relative, in float64 but for transformers' rotary angles, which have float32 (GPT-2: 1e-15)
TOKENS = np.random.default_rng(0).integers(5, 31, size=(2, 7))
SIZES = dict(vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
             max_position_embeddings=32, bos_token_id=None, eos_token_id=None, pad_token_id=None)  # fmt: skip
GROUPED = SIZES | dict(num_key_value_heads=2)
OLD = dict(vocab_size=31, n_positions=32, n_embd=16, n_layer=2, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0,
           attn_pdrop=0.0, bos_token_id=None, eos_token_id=None)  # fmt: skip
TIED, LLAMA = dict(tie_word_embeddings=True), ["q_proj", "v_proj"]
FAMILIES = {  # model_type -> its sizes, and what is adapted first
    "gpt2": (OLD, ["c_attn"]),
    "llama": (GROUPED | dict(tie_word_embeddings=False), LLAMA),
    "mistral": (GROUPED | dict(sliding_window=4), LLAMA),
    "phi3": (GROUPED, ["qkv_proj"]),
    "qwen2": (GROUPED | TIED, LLAMA),
    "qwen3": (GROUPED | TIED | dict(head_dim=6), LLAMA),
    "gemma": (SIZES | TIED | dict(num_key_value_heads=1, head_dim=6), LLAMA),
    "gemma3_text": (GROUPED | TIED | dict(head_dim=6, sliding_window=4), LLAMA),
}
every_family = pytest.mark.parametrize("family", FAMILIES)


def peer_of(family, **sizes):
    """transformers' model of a family, every parameter from N(0, 0.2), and the norms around 1."""
    config = transformers.AutoConfig.for_model(family, **{**FAMILIES[family][0], **sizes})
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(1.0 if "norm" in name and "gemma" not in family else 0.0, 0.2)
    return model


def ours(peer, dtype="float64"):
    """Our model with the same weights."""
    config = {key: value for key, value in peer.config.to_dict().items() if value is not None}
    model = ml.Transformer(from_hugging_face(config)).astype(dtype)
    theirs, state = Theirs(model), {}
    for name, value in peer.state_dict().items():
        if not name.startswith("score"):
            state |= theirs.ours(name, value.numpy())
    if theirs.architecture.head == "untied":
        state.setdefault("head.weight", model.head.weight.data)
    model.load_state_dict(state)
    return model


def adapted(family, config, folder, dtype=None):
    """PEFT's model with every number of its adapter drawn, in `folder`, too."""
    peer = peft.get_peft_model(peer_of(family), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in peer.parameters():
            if p.requires_grad:
                p.add_(0.2 * torch.randn(p.shape, generator=generator).to(p.dtype))
    peer = peer.double().eval()
    peer.save_pretrained(folder)
    return peer


def logits(model):
    if isinstance(model, torch.nn.Module):
        with torch.no_grad():
            return model(torch.tensor(TOKENS)).logits.numpy()[:, -TOKENS.shape[1] :]
    return model(TOKENS).data


def check_both_ways(family, config, folder, relative_error, merges=True):
    peer, model = adapted(family, config, folder / "theirs"), ours(peer_of(family))
    plain, expected = logits(model), logits(peer)
    assert relative_error(plain, logits(peer_of(family))) <= BAR
    ml.load_adapter(model, folder / "theirs")
    assert relative_error(logits(model), expected) <= BAR
    assert relative_error(plain, expected) > 1e-3  # the adapter had something to say
    ml.save_adapter(model, folder / "ours", format="peft")
    one, two = (load_file(folder / name / "adapter_model.safetensors") for name in ("theirs", "ours"))
    one = {name: value for name, value in one.items() if not name.endswith("base_layer.weight")}  # the base's own
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one)
    again = peft.PeftModel.from_pretrained(peer_of(family), folder / "ours").double().eval()
    assert relative_error(logits(again), expected) == 0
    if merges:
        ml.merge_adapter(model)
        merged, theirs = peer.merge_and_unload(), Theirs(model)
        state = {}
        for name, value in merged.state_dict().items():
            state |= theirs.ours(name, value.numpy())
        held = ml.remove_adapter(model).state_dict()
        assert relative_error({name: held[name] for name in state}, state) <= BAR
    return model


LORA = {
    "attention": lambda f: dict(target_modules=FAMILIES[f][1], lora_alpha=6),
    "all-linear, ranks and rsLoRA": lambda f: dict(
        target_modules="all-linear", use_rslora=True, rank_pattern={r".*\.1\..*": 3, FAMILIES[f][1][0]: 2},
        alpha_pattern={FAMILIES[f][1][0]: 5},
    ),
    "dora": lambda f: dict(target_modules=FAMILIES[f][1], use_dora=True),
    "a regular expression": lambda f: dict(target_modules=r".*\.1\..*(c_attn|c_fc|qkv_proj|up_proj|q_proj)"),
    "one layer, and norms": lambda f: dict(
        target_modules=FAMILIES[f][1], layers_to_transform=[1], modules_to_save=["norm", "ln_f"]
    ),
}  # fmt: skip


@every_family
@pytest.mark.parametrize("kind", LORA)
def test_lora(family, kind, tmp_path, relative_error):
    check_both_ways(family, peft.LoraConfig(r=4, **LORA[kind](family)), tmp_path, relative_error)


IA3 = {  # what PEFT stretches of a family by default, and other choices
    "gpt2": [dict(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"]),
             dict(target_modules=["c_fc", "attn.c_proj"], feedforward_modules=["c_fc"], modules_to_save=["ln_f"])],
    "llama": [dict(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])],
    "phi3": [dict(target_modules=["qkv_proj", "gate_up_proj"], feedforward_modules=["gate_up_proj"])],
    "qwen2": [dict(target_modules=["q_proj", "up_proj"], feedforward_modules=[])],
}  # fmt: skip


@pytest.mark.parametrize("family", IA3)
def test_ia3(family, tmp_path, relative_error):
    for i, settings in enumerate(IA3[family]):
        check_both_ways(family, peft.IA3Config(**settings), tmp_path / str(i), relative_error)


def test_our_ia3_on_a_part_of_a_matrix_is_read_by_peft(tmp_path, relative_error):
    """Keys and values of GPT-2: the rows of queries in c_attn are stretched by 1."""
    model, peer = ours(peer_of("gpt2")), peer_of("gpt2")
    ml.add_adapter(model, ml.IA3Config())
    for i, p in enumerate(adapter_parameters(model).values()):
        p.data += np.random.default_rng(i).normal(0, 0.2, p.shape)
    ml.save_adapter(model, tmp_path / "a", format="peft")
    theirs = peft.PeftModel.from_pretrained(peer, tmp_path / "a").double().eval()
    assert relative_error(logits(model), logits(theirs)) <= BAR
    again = ml.load_adapter(ours(peer_of("gpt2")), tmp_path / "a")
    np.testing.assert_array_equal(logits(again), logits(model))


@pytest.mark.parametrize("config", [peft.VeraConfig(r=4, target_modules=["c_attn"]),
                                    peft.MissConfig(r=4, target_modules=["q_proj"])], ids=["vera", "miss"])  # fmt: skip
def test_what_is_not_read_is_refused_by_name(config, tmp_path):
    family = "gpt2" if "c_attn" in config.target_modules else "llama"
    adapted(family, config, tmp_path)
    kind = str(config.peft_type.value)
    with pytest.raises(ValueError, match=f"peft_type = '{kind}' is not known here; LORA, .*IA3 are"):
        ml.load_adapter(ours(peer_of(family)), tmp_path)


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_biases(family, bias, tmp_path, relative_error):
    config = peft.LoraConfig(r=4, target_modules=FAMILIES[family][1], bias=bias)
    check_both_ways(family, config, tmp_path, relative_error)


def test_biases_of_modules_that_are_trained_in_full(tmp_path, relative_error):
    config = peft.LoraConfig(r=4, target_modules=["c_attn"], bias="all", modules_to_save=["ln_f"])
    peer, model = adapted("gpt2", config, tmp_path), ours(peer_of("gpt2"))
    assert relative_error(logits(ml.load_adapter(model, tmp_path)), logits(peer)) <= BAR


@every_family
def test_the_table_and_the_head(family, tmp_path, relative_error):
    table, tied = "wte" if family == "gpt2" else "embed_tokens", family not in ("llama", "mistral", "phi3")
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=[table, *([] if tied else ["lm_head"])])
    model = check_both_ways(family, config, tmp_path, relative_error, merges=not tied)
    if tied:
        with pytest.raises(ValueError, match=r"merge_adapter: wte: .*tied head"):
            ml.merge_adapter(model)


@pytest.mark.parametrize("family", ["gemma", "qwen2"])
@pytest.mark.parametrize("how", ["target_modules", "modules_to_save"])
def test_a_tie_that_is_kept(family, how, tmp_path, relative_error):
    """PEFT's ensure_weight_tying: the table's update is the head's, too, and is merged once for both.

    PEFT 0.21 adds it to the one table twice, for the head and for the table, and its merged model is another: its
    outputs before the merge are what ours are held to.
    """
    settings = {"target_modules": ["q_proj"], how: ["embed_tokens"]}
    config = peft.LoraConfig(r=4, ensure_weight_tying=True, **settings)
    model = check_both_ways(family, config, tmp_path, relative_error, merges=False)
    before = logits(model)
    ml.merge_adapter(model)
    assert relative_error(logits(model), before) <= 1e-12
    assert relative_error(logits(ml.remove_adapter(model)), before) <= 1e-12


@every_family
@pytest.mark.parametrize("config", [peft.PromptTuningConfig, peft.PrefixTuningConfig], ids=["prompt", "prefix"])
def test_virtual_tokens(family, config, tmp_path, relative_error):
    check_both_ways(family, config(num_virtual_tokens=3, task_type="CAUSAL_LM"), tmp_path, relative_error, merges=False)


OWN = {  # adapters as ours are made, their parts trained apart
    "blocks of a larger rank": ml.LoRAConfig(2, 3, target_modules="*"),
    "part of a fused matrix": ml.LoRAConfig(2, 3, target_modules=("q_proj", "v_proj", "up_proj"), rank_stabilized=True),
    "ranks and alphas": ml.LoRAConfig(
        2, 3, ("q_proj", "k_proj", "down_proj"), rank_pattern={"q_proj": 1}, alpha_pattern={"blocks.1.*": 5}
    ),
    "dora": ml.DoRAConfig(2, 3, target_modules=("k_proj", "o_proj")),
    "pissa": ml.LoRAConfig(2, 3, target_modules=("q_proj", "o_proj"), init="pissa"),
    "pissa and rsLoRA": ml.LoRAConfig(2, 3, target_modules=("o_proj",), init="pissa", rank_stabilized=True),
    "the table in full": ml.LoRAConfig(2, 3, ("o_proj",), modules_to_save=("wte", "ln_f", "blocks.0.mlp")),
    "the table": ml.LoRAConfig(2, 3, target_modules=("wte", "o_proj")),
    "the table and the head": ml.LoRAConfig(2, 3, target_modules=("wte", "o_proj"), ensure_weight_tying=True),
    "prefix": ml.PrefixConfig(3, hidden=4),
    "prompt": ml.PromptConfig(3),
}  # fmt: skip


@pytest.mark.parametrize("family", ["gpt2", "phi3", "gemma"])
@pytest.mark.parametrize("kind", OWN)
def test_ours_are_read_by_peft(family, kind, tmp_path, relative_error):
    model, rng = ml.add_adapter(ours(peer_of(family)), OWN[kind]), np.random.default_rng(3)
    plain = logits(model)
    for p in adapter_parameters(model).values():
        if p.requires_grad:
            p.data += rng.normal(0, 0.2, p.shape)
            p.changed()
    ml.save_adapter(model, tmp_path, format="peft")
    peer = peft.PeftModel.from_pretrained(peer_of(family), tmp_path).double().eval()
    expected = logits(peer)
    assert relative_error(logits(model), expected) <= BAR
    assert relative_error(plain, expected) > 1e-3
    ml.load_adapter(again := ours(peer_of(family)), tmp_path)
    assert relative_error(logits(again), expected) <= BAR


@pytest.mark.parametrize("rslora", [False, True])
def test_pissa_that_peft_converted(rslora, tmp_path, relative_error):
    base = peer_of("llama").float()
    model = ours(base)
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=LLAMA, init_lora_weights="pissa", use_rslora=rslora)
    peer = peft.get_peft_model(base, config).eval()
    peer.save_pretrained(tmp_path / "start")
    with torch.no_grad():
        for p in peer.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape))
    expected = logits(peer)
    peer.save_pretrained(tmp_path / "plain")
    peer.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    with pytest.raises(ValueError, match=r"init_lora_weights = 'pissa'.*path_initial_model_for_weight_conversion"):
        ml.load_adapter(model, tmp_path / "plain")
    ml.load_adapter(model, tmp_path / "converted")
    assert model.adapters["default"].configs[0].rank == 8
    assert relative_error(logits(model), expected) <= 1e-5


def test_a_gpt_takes_them_as_well(tmp_path, relative_error):
    config = peft.LoraConfig(r=4, target_modules=["c_attn", "c_fc"], modules_to_save=["wpe"])
    peer = adapted("gpt2", config, tmp_path)
    model, sizes = ml.GPT(ml.GPTConfig(31, 32, 2, 4, 16)).astype("float64"), ours(peer_of("gpt2"))
    model.load_state_dict(sizes.state_dict())
    assert relative_error(logits(ml.load_adapter(model, tmp_path)), logits(peer)) <= 1e-12


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text"])
@pytest.mark.parametrize("kind", ["lora", "prompt"])
def test_a_head_for_labels(family, kind, tmp_path, relative_error):
    config = transformers.AutoConfig.for_model(family, **{**FAMILIES[family][0], "num_labels": 3, "pad_token_id": 0})
    torch.manual_seed(0)
    make = lambda: transformers.AutoModelForSequenceClassification.from_config(config).double().eval()
    base = make()
    with torch.no_grad():
        for p in base.parameters():
            p.normal_(0, 0.2)
    model = ml.add_classifier(ours(base), ("a", "b", "c"))
    lora = peft.LoraConfig(r=4, target_modules=FAMILIES[family][1], task_type="SEQ_CLS")
    prompt = peft.PromptTuningConfig(num_virtual_tokens=3, task_type="SEQ_CLS")
    peer = peft.get_peft_model(base, lora if kind == "lora" else prompt)
    with torch.no_grad():
        for p in peer.parameters():
            if p.requires_grad:
                p.add_(0.2 * torch.randn(p.shape))
    peer.double().eval().save_pretrained(tmp_path / "theirs")
    ml.load_adapter(model, tmp_path / "theirs")
    assert model.adapters["default"].configs[0].modules_to_save == ("classifier",)
    with torch.no_grad():
        expected = peer(torch.tensor(TOKENS)).logits
    assert relative_error(model.scores(TOKENS).data[:, -1], expected) <= BAR
    ml.save_adapter(model, tmp_path / "ours", format="peft")
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("theirs", "ours"))
    assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)
    with pytest.raises(ValueError, match=r"score, a head for labels: ml\.add_classifier"):
        ml.load_adapter(ours(make()), tmp_path / "theirs")


ENCODERS = {
    "bert": (
        dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24),
        ["query", "value"],
    ),
    "roberta": (
        dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24),
        ["query", "output.dense"],
    ),
    "distilbert": (dict(dim=16, n_layers=2, n_heads=4, hidden_dim=24), ["q_lin", "v_lin", "ffn.lin1"]),
}
AS_WHAT = {"masked": "AutoModelForMaskedLM", "labels": "AutoModelForSequenceClassification", "none": "AutoModel"}


def encoder_of(family, head, **sizes):
    """transformers' encoder with every parameter drawn, and ours with the same."""
    config = transformers.AutoConfig.for_model(
        family, **{**ENCODERS[family][0], "vocab_size": 31, "max_position_embeddings": 32, "num_labels": 3, **sizes}
    )
    torch.manual_seed(0)
    peer = getattr(transformers, AS_WHAT[head]).from_config(config).double().eval()
    with torch.no_grad():
        for p in peer.parameters():
            p.copy_((p.ndim == 1) + 0.2 * torch.randn(p.shape))
    a = from_hugging_face(config.to_dict())
    pooler = any("pooler" in name for name, _ in peer.named_parameters())
    labels = config.num_labels * (head == "labels")
    a = dataclasses.replace(a, head=head, labels=labels, pooler=pooler)
    model = ml.Transformer(a).astype("float64")
    theirs, state = Theirs(model, bare=head == "none"), {}
    for name, value in peer.state_dict().items():
        if "decoder" not in name and not name.endswith(("projector.weight", "position_ids")):
            state |= theirs.ours(name, value.numpy())
    model.load_state_dict(state)
    return peer, model


def outputs_of(model):
    if not isinstance(model, torch.nn.Module):
        return model(TOKENS).data
    with torch.no_grad():
        return model(torch.tensor(TOKENS))[0].numpy()


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize("head", AS_WHAT)
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_encoders(family, head, dora, tmp_path, relative_error):
    peer, model = encoder_of(family, head)
    task = {"labels": dict(task_type="SEQ_CLS")}.get(head, {})
    if family == "distilbert" and head == "labels":
        task["modules_to_save"] = ["pre_classifier", "classifier", "classifier", "score"]  # a name twice, one not there
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=ENCODERS[family][1], use_dora=dora, **task)
    peer = peft.get_peft_model(peer, config)
    with torch.no_grad():
        for p in peer.parameters():
            if p.requires_grad:
                p.add_(0.2 * torch.randn(p.shape).to(p.dtype))
    peer.double().eval().save_pretrained(tmp_path / "theirs")
    expected, plain = outputs_of(peer), outputs_of(model)
    ml.load_adapter(model, tmp_path / "theirs")
    assert relative_error(outputs_of(model), expected) <= 1e-10
    assert relative_error(plain, expected) > 1e-3
    ml.save_adapter(model, tmp_path / "ours", format="peft")
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("theirs", "ours"))
    assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)
    again = peft.PeftModel.from_pretrained(encoder_of(family, head)[0], tmp_path / "ours").double().eval()
    assert relative_error(outputs_of(again), expected) == 0
    ml.merge_adapter(model)
    assert relative_error(outputs_of(model), expected) <= 1e-10


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize("saved", [(), ("classifier",), ("classifier.out_proj",)])
def test_a_head_of_an_encoder_that_is_trained_or_not(family, saved, tmp_path, relative_error):
    """Where PEFT is told of labels it expects a head in the file: it is told so where all of the head is there."""
    peer, model = encoder_of(family, "labels")
    if saved == ("classifier.out_proj",) and family == "bert":
        saved = ()
    shaken = ml.add_lora(model, ml.LoRAConfig(2, modules_to_save=saved))
    for p in adapter_parameters(shaken).values():
        p.data += np.random.default_rng(2).normal(0, 0.2, p.shape)
    folder = ml.save_adapter(model, tmp_path, format="peft")
    peer = peft.PeftModel.from_pretrained(peer, folder).double().eval()
    assert relative_error(outputs_of(peer), outputs_of(model)) <= 1e-10


@pytest.fixture
def made_by_others():
    """The folder of adapters that others trained."""
    folder = Path(os.environ.get("MINILORA_DATA", "nowhere")) / "adapters"
    if not folder.is_dir():
        pytest.skip("MINILORA_DATA names no folder with adapters that others trained")
    return folder


@pytest.mark.slow
def test_an_adapter_of_gpt2_that_others_trained(made_by_others, tmp_path, relative_error):
    """On GPT-2's own shapes, but for a small vocabulary, drawn at random: loaded, written again, read by PEFT."""
    config = transformers.AutoConfig.for_model("gpt2", **{**OLD, "n_embd": 768, "n_layer": 12, "n_head": 12})
    base = transformers.AutoModelForCausalLM.from_config(config).eval()
    model, folder = ours(base, "float32"), made_by_others / "tigrinya-gpt2"
    plain = logits(model)
    ml.load_adapter(model, folder)
    ml.save_adapter(model, tmp_path, format="peft")
    one, two = (load_file(place / "adapter_model.safetensors") for place in (folder, tmp_path))
    assert one.keys() == two.keys() and len(one) == 72
    assert all(np.array_equal(one[name], two[name]) for name in one)
    told = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (told["r"], told["lora_alpha"], told["fan_in_fan_out"]) == (8, 32, True)
    assert sorted(told["target_modules"]) == ["attn.c_attn", "attn.c_proj", "mlp.c_proj"]
    again = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    assert relative_error(logits(model), logits(again)) <= 1e-5
    assert relative_error(plain, logits(again)) > 1e-3


@pytest.mark.slow
def test_an_adapter_of_distilbert_that_others_trained(made_by_others, tmp_path, relative_error):
    """On DistilBERT's own shapes, but for a small vocabulary: six emotions, and one name twice in modules_to_save."""
    sizes = dict(dim=768, n_layers=6, n_heads=12, hidden_dim=3072, num_labels=6)
    peer, model = encoder_of("distilbert", "labels", **sizes)
    folder = made_by_others / "emotion-distilbert"
    ml.load_adapter(model.astype("float32"), folder)
    ml.save_adapter(model, tmp_path, format="peft")
    one, two = (load_file(place / "adapter_model.safetensors") for place in (folder, tmp_path))
    assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)
    expected = outputs_of(peft.PeftModel.from_pretrained(peer.float(), folder).eval())
    assert relative_error(outputs_of(model), expected) <= 1e-5
    again = encoder_of("distilbert", "labels", **sizes)[0].float()
    assert relative_error(outputs_of(peft.PeftModel.from_pretrained(again, tmp_path).eval()), expected) == 0

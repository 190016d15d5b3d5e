"""Counts against transformers and PEFT: the same configurations built on the meta device, without memory."""

import json
from dataclasses import replace

import pytest

from minilora.analysis import counting
from minilora.interop.config_out import with_head
from minilora.nn.vision import ViTConfig

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
transformers = pytest.importorskip("transformers", reason="this test needs transformers: pip install 'minilora[peers]'")

GEMMA = dict(head_dim=256, vocab_size=256000, max_position_embeddings=8192)
CONFIGS = {  # name: (configuration class, model class, sizes as in the model's published config.json)
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", dict(n_embd=768, n_layer=12, n_head=12)),
    "gpt2-medium": ("GPT2Config", "GPT2LMHeadModel", dict(n_embd=1024, n_layer=24, n_head=16)),
    "gpt2-large": ("GPT2Config", "GPT2LMHeadModel", dict(n_embd=1280, n_layer=36, n_head=20)),
    "gpt2-xl": ("GPT2Config", "GPT2LMHeadModel", dict(n_embd=1600, n_layer=48, n_head=25)),
    "gpt3-175b": ("GPT2Config", "GPT2LMHeadModel", dict(n_embd=12288, n_layer=96, n_head=96, n_positions=2048)),
    "roberta-base": (
        "RobertaConfig",
        "RobertaModel",
        dict(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1),
    ),
    "roberta-large": (
        "RobertaConfig",
        "RobertaModel",
        dict(
            vocab_size=50265,
            max_position_embeddings=514,
            type_vocab_size=1,
            hidden_size=1024,
            num_hidden_layers=24,
            num_attention_heads=16,
            intermediate_size=4096,
        ),
    ),
    "deberta-v2-xxlarge": (
        "DebertaV2Config",
        "DebertaV2Model",
        dict(
            vocab_size=128100,
            hidden_size=1536,
            num_hidden_layers=48,
            num_attention_heads=24,
            intermediate_size=6144,
            max_position_embeddings=512,
            type_vocab_size=0,
            relative_attention=True,
            position_buckets=256,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            pos_att_type=["p2c", "c2p"],
            position_biased_input=False,
            conv_kernel_size=3,
            conv_act="gelu",
        ),
    ),
    "llama-2-7b": ("LlamaConfig", "LlamaForCausalLM", dict(max_position_embeddings=4096)),
    "llama-2-13b": (
        "LlamaConfig",
        "LlamaForCausalLM",
        dict(
            hidden_size=5120,
            num_hidden_layers=40,
            num_attention_heads=40,
            intermediate_size=13824,
            max_position_embeddings=4096,
        ),
    ),
    "llama-2-70b": (
        "LlamaConfig",
        "LlamaForCausalLM",
        dict(
            hidden_size=8192,
            num_hidden_layers=80,
            num_attention_heads=64,
            num_key_value_heads=8,
            intermediate_size=28672,
            max_position_embeddings=4096,
        ),
    ),
    "gemma-2b": (
        "GemmaConfig",
        "GemmaForCausalLM",
        dict(
            hidden_size=2048,
            num_hidden_layers=18,
            num_attention_heads=8,
            num_key_value_heads=1,
            intermediate_size=16384,
            **GEMMA,
        ),
    ),
    "gemma-7b": (
        "GemmaConfig",
        "GemmaForCausalLM",
        dict(
            hidden_size=3072,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=16,
            intermediate_size=24576,
            **GEMMA,
        ),
    ),
    "mistral-7b": (
        "MistralConfig",
        "MistralForCausalLM",
        dict(
            hidden_size=4096,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            intermediate_size=14336,
            max_position_embeddings=32768,
        ),
    ),
}
LLAMA3 = dict(rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, rope_theta=5e5)
CONFIGS |= {
    "bert-base": ("BertConfig", "BertModel", {}),
    "distilbert-base": ("DistilBertConfig", "DistilBertModel", {}),
    "llama-3-8b": ("LlamaConfig", "LlamaForCausalLM", dict(
        vocab_size=128256, num_key_value_heads=8, intermediate_size=14336)),
    "llama-3.2-1b": ("LlamaConfig", "LlamaForCausalLM", dict(
        vocab_size=128256, hidden_size=2048, num_hidden_layers=16, num_key_value_heads=8, intermediate_size=8192,
        tie_word_embeddings=True, rope_parameters={**LLAMA3, "original_max_position_embeddings": 8192})),
    "smollm2-135m": ("LlamaConfig", "LlamaForCausalLM", dict(
        vocab_size=49152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        intermediate_size=1536, tie_word_embeddings=True)),
    "phi-3-mini": ("Phi3Config", "Phi3ForCausalLM", {}),
    "qwen2-0.5b": ("Qwen2Config", "Qwen2ForCausalLM", dict(
        hidden_size=896, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2, intermediate_size=4864,
        tie_word_embeddings=True)),
    "qwen3-0.6b": ("Qwen3Config", "Qwen3ForCausalLM", dict(
        hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, intermediate_size=3072,
        tie_word_embeddings=True)),
    "gemma-3-1b": ("Gemma3TextConfig", "Gemma3ForCausalLM", dict(
        vocab_size=262144, hidden_size=1152, num_attention_heads=4, num_key_value_heads=1, intermediate_size=6912)),
}  # fmt: skip
ODD = {  # sizes that no published model has, so that each rule is seen on its own
    "untied gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        dict(n_embd=12, n_layer=2, n_head=3, n_inner=20, vocab_size=31, n_positions=16, tie_word_embeddings=False),
    ),
    "llama with biases, tied": (
        "LlamaConfig",
        "LlamaForCausalLM",
        dict(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=10,
            intermediate_size=36,
            vocab_size=31,
            attention_bias=True,
            mlp_bias=True,
            tie_word_embeddings=True,
        ),
    ),
    "qwen2": (
        "Qwen2Config",
        "Qwen2ForCausalLM",
        dict(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            intermediate_size=36,
            vocab_size=31,
        ),
    ),
    "bert": (
        "BertConfig",
        "BertModel",
        dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=6, intermediate_size=36, vocab_size=31),
    ),
    "deberta without buckets or convolution": (
        "DebertaV2Config",
        "DebertaV2Model",
        dict(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=6,
            intermediate_size=36,
            vocab_size=31,
            type_vocab_size=2,
            max_position_embeddings=16,
            relative_attention=True,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            pos_att_type=["p2c", "c2p"],
        ),
    ),
}


def built(kind, model, sizes, layers=None):
    """A transformers model on the meta device, and its configuration. `layers` shortens a deep one."""
    config = getattr(transformers, kind)(**sizes)
    if layers is not None:
        config.num_hidden_layers = layers  # GPT-2's configuration knows it by this name too
    with torch.device("meta"):
        return getattr(transformers, model)(config), config


def size(model):
    return sum(p.numel() for p in model.parameters())  # a tied head counts once


@pytest.mark.parametrize("name", CONFIGS)
def test_every_named_model_has_transformers_count(name):
    """Built with 2 and with 3 blocks: the difference is one block, and the rest follows for any depth."""
    kind, model, sizes = CONFIGS[name]
    two, three = (size(built(kind, model, sizes, layers)[0]) for layers in (2, 3))
    config = getattr(transformers, kind)(**sizes)
    expected = two + (config.num_hidden_layers - 2) * (three - two)
    record = counting.count(name, "full")
    assert record.total_parameters == record.trainable_parameters == expected
    described = counting.from_hugging_face(config.to_dict(), name)
    assert counting.size(counting.parameters(described)) == expected


@pytest.mark.parametrize("name", ODD)
def test_a_config_json_is_counted_as_transformers_builds_it(name, tmp_path):
    model, config = built(*ODD[name])
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    assert counting.count(path, "full").total_parameters == size(model)
    assert counting.find(path) == counting.from_hugging_face(
        {**config.to_dict(), **json.loads(path.read_text())}, tmp_path.name
    )


OLD = [  # files in the words of other times; transformers reads them into its own, and those are read here
    ("LlamaConfig", dict(rope_theta=5e5)),
    ("LlamaConfig", dict(rope_scaling={"type": "linear", "factor": 2.0})),
    ("LlamaConfig", dict(rope_scaling={**LLAMA3, "original_max_position_embeddings": 64})),
    ("LlamaConfig", dict(rope_theta=7.0, rope_scaling={k: v for k, v in LLAMA3.items() if k != "rope_theta"})),
    ("MistralConfig", dict(sliding_window=None)),
    ("MistralConfig", {}),
    ("Phi3Config", dict(partial_rotary_factor=0.5, rope_theta=3.0, sliding_window=7)),
    ("Qwen2Config", dict(use_sliding_window=True, max_window_layers=20, sliding_window=9)),
    ("Qwen2Config", dict(sliding_window=9)),
    ("Qwen3Config", dict(use_sliding_window=True, num_hidden_layers=3, max_window_layers=0, attention_bias=True)),
    ("GemmaConfig", dict(hidden_act="gelu")),
    ("Gemma3TextConfig", dict(rope_theta=5.0, rope_local_base_freq=6.0)),
    ("Gemma3TextConfig", dict(rope_scaling={"rope_type": "linear", "factor": 8.0})),
    ("Gemma3TextConfig", dict(num_hidden_layers=5, sliding_window_pattern=3)),
    ("GPT2Config", dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, max_position_embeddings=9)),
    ("DistilBertConfig", dict(hidden_size=24, num_attention_heads=3, num_hidden_layers=2)),
    ("BertConfig", dict(is_decoder=True)),
]  # fmt: skip


@pytest.mark.parametrize("kind, old", OLD, ids=[f"{kind} {old}"[:70] for kind, old in OLD])
def test_an_old_file_is_read_as_transformers_reads_it(kind, old):
    config = getattr(transformers, kind)(**old)
    ours = counting.from_hugging_face({"model_type": config.model_type, **old})
    new = counting.from_hugging_face(config.to_dict())
    assert replace(ours, kv_heads=ours.key_value_heads, head_dim=ours.dim) == replace(
        new, kv_heads=new.key_value_heads, head_dim=new.dim
    )


def adapted(name, settings, layers=2):
    """PEFT's trainable count on a model of few blocks, and our architecture of the same depth."""
    peft = pytest.importorskip("peft", reason="this test needs PEFT: pip install 'minilora[peers]'")
    model, config = built(*CONFIGS[name], layers)
    with torch.device("meta"):
        wrapped = peft.get_peft_model(model, settings(peft))
    return wrapped.get_nb_trainable_parameters()[0], counting.from_hugging_face(config.to_dict(), name)


ALL_LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NAMES = {  # our names for the matrices -> PEFT's names in each family
    "roberta-base": ({"q_proj": "query", "v_proj": "value"}, ("q_proj", "v_proj")),
    "deberta-v2-xxlarge": ({"q_proj": "query_proj", "v_proj": "value_proj"}, ("q_proj", "v_proj")),
    "llama-2-70b": ({n: n for n in ALL_LLAMA}, ALL_LLAMA),
    "gemma-2b": ({n: n for n in ALL_LLAMA}, ("q_proj", "k_proj", "down_proj")),
    "mistral-7b": ({n: n for n in ALL_LLAMA}, ("o_proj", "gate_proj")),
}


@pytest.mark.parametrize("rank", [1, 4, 16])
@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("name", NAMES)
def test_lora_and_dora_train_what_peft_trains(name, method, rank):
    names, ours = NAMES[name]
    theirs = [names[n] for n in ours]
    settings = lambda peft: peft.LoraConfig(r=rank, target_modules=theirs, use_dora=method == "dora")
    trainable, architecture = adapted(name, settings)
    assert counting.count(architecture, method, rank=rank, target_modules=ours).trainable_parameters == trainable


@pytest.mark.parametrize("tokens", [1, 20])
@pytest.mark.parametrize("name", ["gpt2", "llama-2-7b", "llama-2-70b"])
def test_prompts_and_prefixes_train_what_peft_trains(name, tokens):
    prompt = lambda peft: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens)
    prefix = lambda peft: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens)
    for method, settings in (("prompt", prompt), ("prefix", prefix)):
        trainable, architecture = adapted(name, settings)
        assert counting.count(architecture, method, tokens=tokens).trainable_parameters == trainable


@pytest.mark.parametrize("name", ["gpt2", "roberta-base", "deberta-v2-xxlarge"])
def test_bitfit_trains_every_parameter_that_transformers_calls_bias(name):
    model, config = built(*CONFIGS[name], 2)
    biases = sum(p.numel() for n, p in model.named_parameters() if n.endswith("bias"))
    pooler = sum(p.numel() for n, p in model.named_parameters() if n == "pooler.dense.bias")
    architecture = counting.from_hugging_face(config.to_dict(), name)
    assert counting.count(architecture, "bitfit").trainable_parameters == biases
    assert ("pooler.bias" in counting.plan(architecture, "bitfit").trained) == bool(pooler)


SMALL = {  # real tensors, for the operation counter must run them
    "untied gpt2": ODD["untied gpt2"],
    "llama with biases, tied": ODD["llama with biases, tied"],
    "qwen2": ODD["qwen2"],
    "bert": ODD["bert"],  # with its pooler
    "deberta without buckets or convolution": ODD["deberta without buckets or convolution"],
    "deberta": (
        "DebertaV2Config",
        "DebertaV2Model",
        {**ODD["deberta without buckets or convolution"][2], "conv_kernel_size": 3, "position_buckets": 4},
    ),
}


def loss(output):
    """Something that needs every number a model gives."""
    if "logits" in output:
        return output.logits.sum()
    return output.last_hidden_state.sum() + (output.pooler_output.sum() if "pooler_output" in output else 0)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("method", ["full", "last-blocks", "bitfit"])
def test_operations_equal_pytorchs_own_counter(name, method):
    """torch.utils.flop_counter over a forward and a backward pass; with the last block alone, the first needs none."""
    from torch.utils.flop_counter import FlopCounterMode

    kind, model_class, sizes = SMALL[name]
    config = getattr(transformers, kind)(**sizes, attn_implementation="eager")
    config.use_cache = False
    model = getattr(transformers, model_class)(config)
    for parameter, p in model.named_parameters():
        trained = {"full": True, "last-blocks": ".1." in parameter, "bitfit": parameter.endswith("bias")}
        p.requires_grad = trained[method]
    ours = counting.operations(counting.from_hugging_face(config.to_dict()), method, batch=2, length=16, blocks=1)
    with FlopCounterMode(display=False) as counter:
        output = model(torch.zeros(2, 16, dtype=torch.long))
        forward = counter.get_total_flops()
        loss(output).backward()
    assert forward == ours["forward"]
    assert counter.get_total_flops() == ours["training"]


FEW = dict(num_labels=3, vocab_size=50, max_position_embeddings=40)
SIZES = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40)
WITH_HEADS = {
    "Bert": SIZES, "Roberta": SIZES, "DistilBert": dict(dim=24, n_layers=2, n_heads=3, hidden_dim=40),
}  # fmt: skip


VITS = {
    "vit-b/16": {},
    "vit-l/16": dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
    "vit-h/14": dict(
        hidden_size=1280, num_hidden_layers=32, num_attention_heads=16, intermediate_size=5120, patch_size=14
    ),
}


@pytest.mark.parametrize("name", VITS)
def test_a_vision_transformer_is_counted_as_transformers_builds_it(name):
    peft = pytest.importorskip("peft", reason="this test needs PEFT: pip install 'minilora[peers]'")
    with torch.device("meta"):
        model = transformers.ViTForImageClassification(transformers.ViTConfig(**VITS[name], num_labels=1000))
        assert counting.count(name, "full").total_parameters == size(model)
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    trained = counting.count(name, "lora", rank=4).trainable_parameters
    assert trained == adapted.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("method", ["full", "last-blocks", "bitfit"])
def test_operations_of_a_vision_transformer_equal_pytorchs_own_counter(method):
    from torch.utils.flop_counter import FlopCounterMode

    sizes = dict(image_size=12, patch_size=4, num_labels=3, **SIZES)
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, attn_implementation="eager"))
    for parameter, p in model.named_parameters():
        trained = {"full": True, "last-blocks": "layer.1." in parameter, "bitfit": parameter.endswith("bias")}
        trained["last-blocks"] |= "layers.1." in parameter
        p.requires_grad = trained[method]
    config = ViTConfig(12, 4, 3, n_layer=2, n_head=3, n_embd=24, labels=3, mlp_width=40)
    ours = counting.operations(config.blocks, method, batch=2, blocks=1)
    with FlopCounterMode(display=False) as counter:
        output = model(torch.zeros(2, 3, 12, 12))
        forward = counter.get_total_flops()
        output.logits.sum().backward()
    assert forward == ours["forward"]
    assert counter.get_total_flops() == ours["training"]


@pytest.mark.parametrize("family", WITH_HEADS)
@pytest.mark.parametrize("head", ["ForMaskedLM", "ForSequenceClassification"])
@pytest.mark.parametrize("method", ["full", "last-blocks", "bitfit"])
def test_operations_of_an_encoders_head_equal_pytorchs_own_counter(family, head, method):
    from torch.utils.flop_counter import FlopCounterMode

    config = getattr(transformers, f"{family}Config")(**FEW, **WITH_HEADS[family], attn_implementation="eager")
    model = getattr(transformers, family + head)(config)
    for parameter, p in model.named_parameters():
        trained = {"full": True, "last-blocks": "layer.1." in parameter, "bitfit": parameter.endswith("bias")}
        p.requires_grad = trained[method]
    said = config.to_dict() | {"architectures": [family + head]}
    architecture = with_head(counting.from_hugging_face(config.to_dict()), said)
    ours = counting.operations(architecture, method, batch=2, length=16, blocks=1)
    with FlopCounterMode(display=False) as counter:
        output = model(torch.zeros(2, 16, dtype=torch.long))
        forward = counter.get_total_flops()
        output.logits.sum().backward()
    assert forward == ours["forward"]
    assert counter.get_total_flops() == ours["training"]


@pytest.mark.parametrize(
    "name, theirs",
    [
        ("qwen2", ("q_proj", "k_proj", "down_proj")),
        ("bert", ("query", "key", "output.dense")),
        ("deberta", ("query_proj", "key_proj", "output.dense")),
    ],
)
def test_loras_operations_equal_pytorchs_own_counter_in_the_forward_pass(name, theirs):
    """Backward, ours takes attention as one step: a gradient for q alone costs it as much as one for q, k and v."""
    from torch.utils.flop_counter import FlopCounterMode

    peft = pytest.importorskip("peft", reason="this test needs PEFT: pip install 'minilora[peers]'")
    kind, model_class, sizes = SMALL[name]
    config = getattr(transformers, kind)(**sizes, attn_implementation="eager")
    targets = ("q_proj", "k_proj", "down_proj") + (("o_proj",) if name != "qwen2" else ())  # output.dense is both
    ours = counting.operations(
        counting.from_hugging_face(config.to_dict()), rank=3, batch=2, length=16, target_modules=targets
    )
    adapted = peft.get_peft_model(
        getattr(transformers, model_class)(config), peft.LoraConfig(r=3, target_modules=list(theirs))
    )
    with FlopCounterMode(display=False) as counter:
        output = adapted(input_ids=torch.zeros(2, 16, dtype=torch.long))
        forward = counter.get_total_flops()
        loss(output).backward()
    assert forward == ours["forward"]
    assert 0.9 * ours["training"] < counter.get_total_flops() <= ours["training"]

"""What a config.json says of how a model computes: read, in every format that there was, or refused by name."""

from dataclasses import replace

import pytest

from minilora.nn.architectures import MODELS, from_hugging_face

LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip
ASIDE = dict(  # what files say beside it, and no result depends on
    architectures=["ForCausalLM"], torch_dtype="bfloat16", use_cache=True, initializer_range=0.02, bos_token_id=1,
    eos_token_id=[2, 3], transformers_version="4.48.0", auto_map={"AutoConfig": "x.py"}, pretraining_tp=1,
    attention_dropout=0.0, output_attentions=False, _attn_implementation_autoset=True, unsloth_version="2025.1",
)  # fmt: skip
PUBLISHED = {  # as the files of these models have it, in the words of their time
    "gpt2": dict(
        model_type="gpt2", activation_function="gelu_new", attn_pdrop=0.1, embd_pdrop=0.1, layer_norm_epsilon=1e-05,
        n_ctx=1024, n_embd=768, n_head=12, n_layer=12, n_positions=1024, resid_pdrop=0.1, summary_activation=None,
        summary_proj_to_labels=True, summary_type="cls_index", task_specific_params={"text-generation": {}},
        vocab_size=50257,
    ),
    "llama-2-7b": dict(
        model_type="llama", hidden_act="silu", hidden_size=4096, intermediate_size=11008, max_position_embeddings=4096,
        num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=32, rms_norm_eps=1e-05, rope_scaling=None,
        tie_word_embeddings=False, vocab_size=32000,
    ),
    "llama-3.2-1b": dict(
        model_type="llama", attention_bias=False, head_dim=64, hidden_act="silu", hidden_size=2048, mlp_bias=False,
        intermediate_size=8192, max_position_embeddings=131072, num_attention_heads=32, num_hidden_layers=16,
        num_key_value_heads=8, rms_norm_eps=1e-05, rope_scaling=LLAMA3, rope_theta=500000.0, tie_word_embeddings=True,
        vocab_size=128256,
    ),
    "smollm2-135m": dict(
        model_type="llama", attention_bias=False, hidden_act="silu", hidden_size=576, intermediate_size=1536,
        is_llama_config=True, max_position_embeddings=8192, mlp_bias=False, num_attention_heads=9, num_hidden_layers=30,
        num_key_value_heads=3, rms_norm_eps=1e-05, rope_interleaved=False, rope_scaling=None, rope_theta=100000,
        tie_word_embeddings=True, vocab_size=49152,
    ),
    "phi-3-mini": dict(
        model_type="phi3", attention_bias=False, embd_pdrop=0.0, hidden_act="silu", hidden_size=3072,
        intermediate_size=8192, max_position_embeddings=4096, num_attention_heads=32, num_hidden_layers=32,
        num_key_value_heads=32, original_max_position_embeddings=4096, pad_token_id=32000, resid_pdrop=0.0,
        rms_norm_eps=1e-05, rope_scaling=None, rope_theta=10000.0, sliding_window=2047, tie_word_embeddings=False,
        vocab_size=32064,
    ),
    "mistral-7b": dict(
        model_type="mistral", hidden_act="silu", hidden_size=4096, intermediate_size=14336,
        max_position_embeddings=32768, num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=8,
        rms_norm_eps=1e-05, rope_theta=10000.0, sliding_window=4096, tie_word_embeddings=False, vocab_size=32000,
    ),
    "qwen2-0.5b": dict(
        model_type="qwen2", hidden_act="silu", hidden_size=896, intermediate_size=4864, max_position_embeddings=131072,
        max_window_layers=24, num_attention_heads=14, num_hidden_layers=24, num_key_value_heads=2, rms_norm_eps=1e-06,
        rope_theta=1000000.0, sliding_window=131072, tie_word_embeddings=True, use_sliding_window=False,
        use_mrope=False, vocab_size=151936,
    ),
    "qwen3-0.6b": dict(
        model_type="qwen3", attention_bias=False, head_dim=128, hidden_act="silu", hidden_size=1024,
        intermediate_size=3072, max_position_embeddings=40960, max_window_layers=28, num_attention_heads=16,
        num_hidden_layers=28, num_key_value_heads=8, rms_norm_eps=1e-06, rope_scaling=None, rope_theta=1000000,
        sliding_window=None, tie_word_embeddings=True, use_sliding_window=False, vocab_size=151936,
    ),
    "gemma-2b": dict(
        model_type="gemma", attention_bias=False, head_dim=256, hidden_act="gelu",
        hidden_activation="gelu_pytorch_tanh", hidden_size=2048, intermediate_size=16384,
        max_position_embeddings=8192, num_attention_heads=8, num_hidden_layers=18, num_key_value_heads=1,
        pad_token_id=0, rms_norm_eps=1e-06, rope_scaling=None, rope_theta=10000.0, vocab_size=256000,
    ),
    "gemma-3-1b": dict(
        model_type="gemma3_text", attention_bias=False, attn_logit_softcapping=None, cache_implementation="hybrid",
        final_logit_softcapping=None, head_dim=256, hidden_activation="gelu_pytorch_tanh", hidden_size=1152,
        intermediate_size=6912, max_position_embeddings=32768, num_attention_heads=4, num_hidden_layers=26,
        num_key_value_heads=1, pad_token_id=0, query_pre_attn_scalar=256, rms_norm_eps=1e-06,
        rope_local_base_freq=10000, rope_scaling=None, rope_theta=1000000, sliding_window=512, sliding_window_pattern=6,
        vocab_size=262144,
    ),
    "bert-base": dict(
        model_type="bert", attention_probs_dropout_prob=0.1, gradient_checkpointing=False, hidden_act="gelu",
        hidden_dropout_prob=0.1, hidden_size=768, intermediate_size=3072, layer_norm_eps=1e-12,
        max_position_embeddings=512, num_attention_heads=12, num_hidden_layers=12, pad_token_id=0,
        position_embedding_type="absolute", pooler_num_attention_heads=12, type_vocab_size=2, vocab_size=30522,
    ),
    "distilbert-base": dict(
        model_type="distilbert", activation="gelu", dim=768, dropout=0.1, hidden_dim=3072, max_position_embeddings=512,
        n_heads=12, n_layers=6, pad_token_id=0, qa_dropout=0.1, seq_classif_dropout=0.2, sinusoidal_pos_embds=False,
        tie_weights_=True, vocab_size=30522,
    ),
    "roberta-base": dict(
        model_type="roberta", hidden_act="gelu", hidden_dropout_prob=0.1, hidden_size=768, intermediate_size=3072,
        layer_norm_eps=1e-05, max_position_embeddings=514, num_attention_heads=12, num_hidden_layers=12, pad_token_id=1,
        type_vocab_size=1, vocab_size=50265,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_is_the_row_of_its_name(name):
    said, row = from_hugging_face({**ASIDE, **PUBLISHED[name]}, name), MODELS[name]
    assert (said.kv_heads or said.heads, said.dim) == (row.key_value_heads, row.dim)
    assert replace(said, kv_heads=row.kv_heads, head_dim=row.head_dim) == row


BOTH = [  # (family, as older files have it, as newer ones do)
    ("llama", {"rope_theta": 5e5}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2}},
     {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}),
    ("llama", {"rope_theta": 7, "rope_scaling": LLAMA3}, {"rope_parameters": {**LLAMA3, "rope_theta": 7}}),
    ("llama", {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 2048}},
     {"rope_parameters": {k: v for k, v in LLAMA3.items() if "original" not in k}}),  # then it is the context, 2048
    ("phi3", {"partial_rotary_factor": 0.5},
     {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
    ("gemma3_text", {"rope_local_base_freq": 5, "rope_theta": 6, "rope_scaling": {"rope_type": "linear", "factor": 8}},
     {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8, "rope_theta": 6},
                          "sliding_attention": {"rope_type": "default", "rope_theta": 5}}}),
    ("gemma3_text", {"num_hidden_layers": 3, "sliding_window_pattern": 2},
     {"num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    ("qwen2", {"use_sliding_window": True, "num_hidden_layers": 3, "max_window_layers": 1, "sliding_window": 7},
     {"use_sliding_window": True, "num_hidden_layers": 3, "sliding_window": 7,
      "layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}),
    ("gpt2", {"n_embd": 24, "n_layer": 2, "n_head": 3},
     {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}),
]  # fmt: skip


@pytest.mark.parametrize("family, old, new", BOTH)
def test_an_old_file_and_a_new_one_say_the_same(family, old, new):
    one, other = (from_hugging_face({"model_type": family, **fields}) for fields in (old, new))
    assert one == other != from_hugging_face({"model_type": family})


def test_a_model_that_sees_is_read_as_its_language_model():
    text = {k: v for k, v in PUBLISHED["gemma-3-1b"].items() if k != "model_type"}
    seeing = {"model_type": "gemma3", "vision_config": {"hidden_size": 9}, "mm_tokens_per_image": 256}
    assert from_hugging_face({**seeing, "text_config": text}, "gemma-3-1b") == MODELS["gemma-3-1b"]
    with pytest.raises(ValueError, match="unknown model_type 'gemma3'"):
        from_hugging_face({**seeing, "text_config": None})


SLIDING = {"use_sliding_window": True, "num_hidden_layers": 2}
REFUSED = [  # (family, fields, what the line says)
    *(("llama", {field: 8}, f"{field} = 8 is not known for llama") for field in (
        "num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size", "router_aux_loss_coef",
        "residual_multiplier", "logit_scale", "attention_chunk_size", "sliding_window", "num_kv_shared_layers")),
    *(("qwen3", {field: True}, f"{field} = True is not known for qwen3") for field in (
        "cross_attention_layers", "rope_interleaved", "use_qk_norm", "parallel_residual", "clip_qkv", "attn_sinks")),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config = {'bits': 4} is not known"),
    *(("llama", {"rope_scaling": {"rope_type": kind, "factor": 2.0}}, f"rope_type = '{kind}' is not known for llama, "
       "expected one of default, linear, llama3") for kind in ("yarn", "dynamic", "longrope", "mrope")),
    ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "rope_type = 'longrope'"),
    ("llama", {"rope_scaling": {"type": "linear"}}, "factor = None, expected a number above 0"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": "2"}}, "factor = '2', expected a number above 0"),
    ("llama", {"rope_scaling": {**LLAMA3, "factor": -1}}, "factor = -1, expected a number above 0"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2, "mscale": 1}}, "mscale of rope_type 'linear' = 1"),
    ("llama", {"rope_scaling": [2]}, "rope_scaling = [2], expected an object or null"),
    ("llama", {"rope_theta": None}, "rope_theta = None, expected a number above 0"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not known for llama, expected 1.0"),
    ("phi3", {"partial_rotary_factor": 1.5}, "partial_rotary_factor = 1.5 is not known for phi3"),
    ("gemma3_text", {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
     "rope_parameters of sliding_attention = "),
    ("gemma3_text", {"rope_parameters": {"rope_type": "default"}}, "expected full_attention and sliding_attention"),
    ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0 is not known for gemma3_text"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
    ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
    ("gemma", {"hidden_activation": "relu"}, "hidden_activation = 'relu' is not known for gemma"),
    ("llama", {"hidden_act": "quick_gelu"}, "hidden_act = 'quick_gelu' is not known for llama, expected one"),
    ("gpt2", {"activation_function": None}, "activation_function = None is not known for gpt2"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
    ("gpt2", {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn = True"),
    ("llama", {"rms_norm_eps": 0}, "rms_norm_eps = 0, expected a number above 0"),
    ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps = nan, expected a number above 0"),
    ("qwen2", {**SLIDING, "layer_types": ["full_attention"]}, "layer_types = ['full_attention'] is not known"),
    ("qwen2", {**SLIDING, "layer_types": ["full_attention", "chunked_attention"]}, "expected 2 of full_attention"),
    ("qwen2", {"num_hidden_layers": 1, "layer_types": ["sliding_attention"]}, "sliding_window = 4096, expected"),
    ("llama", {"layer_types": ["sliding_attention"] * 32}, "layer_types = "),
    ("gemma3_text", {"sliding_window": None}, "sliding_window = None, expected an integer"),
    ("mistral", {"sliding_window": -1}, "sliding_window = -1, expected a positive integer"),
    ("distilbert", {"sinusoidal_pos_embds": True}, "sinusoidal_pos_embds = True is not known for distilbert"),
]  # fmt: skip


@pytest.mark.parametrize("family, fields, words", REFUSED, ids=[f"{f} {w}"[:70] for f, _, w in REFUSED])
def test_what_is_not_acted_on_is_refused_by_name_in_one_line(family, fields, words):
    with pytest.raises(ValueError) as error:
        from_hugging_face({"model_type": family, **fields})
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_field_that_says_nothing_is_read_over():
    nothing = dict.fromkeys(("num_local_experts", "rope_interleaved", "moe_layers", "quantization_config"), None)
    nothing |= {"num_experts": 0, "clip_qkv": False, "mlp_only_layers": []}
    assert from_hugging_face({"model_type": "llama", **nothing}) == from_hugging_face({"model_type": "llama"})

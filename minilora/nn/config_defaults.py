"""What a Hugging Face `config.json` does not say: a family's defaults, what may not differ, and what its code does.

From the configurations and models of transformers 5.24. `config_json.py` reads the files.
"""

from typing import Any

_BERT: dict[str, Any] = dict(
    vocab_size=30522, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
    max_position_embeddings=512, type_vocab_size=2, hidden_act="gelu", layer_norm_eps=1e-12, pad_token_id=0,
    is_decoder=False,
)  # fmt: skip
_LLAMA: dict[str, Any] = dict(
    vocab_size=32000, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, intermediate_size=11008,
    max_position_embeddings=2048, num_key_value_heads=None, head_dim=None, attention_bias=False, mlp_bias=False,
    tie_word_embeddings=False, hidden_act="silu", rms_norm_eps=1e-6, pad_token_id=None, rope_theta=10000.0,
    rope_scaling=None, rope_parameters=None, partial_rotary_factor=1.0, original_max_position_embeddings=None,
)  # fmt: skip
_QWEN: dict[str, Any] = {
    **_LLAMA, "vocab_size": 151936, "intermediate_size": 22016, "max_position_embeddings": 32768,
    "num_key_value_heads": 32, "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28,
    "layer_types": None,
}  # fmt: skip
_GEMMA: dict[str, Any] = {
    **_LLAMA, "head_dim": 256, "tie_word_embeddings": True, "pad_token_id": 0, "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
}  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {  # what transformers 5.24 takes where a family's file leaves a field out
    "bert": _BERT,
    "deberta-v2": {
        **_BERT, "vocab_size": 128100, "hidden_size": 1536, "num_hidden_layers": 24, "num_attention_heads": 24,
        "intermediate_size": 6144, "type_vocab_size": 0, "max_relative_positions": -1, "position_buckets": -1,
        "position_biased_input": True, "relative_attention": False, "share_att_key": False, "norm_rel_ebd": "none",
        "conv_kernel_size": 0, "layer_norm_eps": 1e-7,
    },
    "distilbert": dict(
        vocab_size=30522, dim=768, n_layers=6, n_heads=12, hidden_dim=3072, max_position_embeddings=512,
        activation="gelu", pad_token_id=0,
    ),
    "gemma": {
        **_GEMMA, "vocab_size": 256000, "hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
        "intermediate_size": 24576, "max_position_embeddings": 8192, "num_key_value_heads": 16,
    },
    "gemma3_text": {
        **_GEMMA, "vocab_size": 262208, "hidden_size": 2304, "num_hidden_layers": 26, "num_attention_heads": 8,
        "intermediate_size": 9216, "max_position_embeddings": 131072, "num_key_value_heads": 4, "rope_theta": 1e6,
        "rope_local_base_freq": 10000.0, "query_pre_attn_scalar": 256, "sliding_window": 4096, "layer_types": None,
        "sliding_window_pattern": 6,
    },
    "gpt2": dict(
        vocab_size=50257, n_positions=1024, n_embd=768, n_layer=12, n_head=12, n_inner=None, tie_word_embeddings=True,
        activation_function="gelu_new", layer_norm_epsilon=1e-5, scale_attn_weights=True, pad_token_id=None,
    ),
    "llama": _LLAMA,
    "mistral": {
        **_LLAMA, "intermediate_size": 14336, "max_position_embeddings": 131072, "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "phi3": {
        **_LLAMA, "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "pad_token_id": 32000, "sliding_window": None,
    },
    "qwen2": {**_QWEN, "attention_bias": True},
    "qwen3": {**_QWEN, "head_dim": 128},
    "roberta": {**_BERT, "vocab_size": 50265, "pad_token_id": 1},
}  # fmt: skip
FAMILIES = tuple(DEFAULTS)
# What would change a model and is not acted on, with the only value that is.
FIXED: dict[str, Any] = {
    "add_cross_attention": False, "position_embedding_type": "absolute", "pruned_heads": {}, "per_layer_config": {},
    "conv_groups": 1, "use_bidirectional_attention": False, "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}  # fmt: skip
_NO_BIAS, _BIAS = ({"attention_bias": have, "mlp_bias": have} for have in (False, True))
FIXED_OF: dict[str, dict[str, Any]] = {
    "bert": _BIAS,
    "deberta-v2": {**_BIAS, "relative_attention": True, "share_att_key": True},
    "distilbert": {"sinusoidal_pos_embds": False},
    "gemma": {"mlp_bias": False},
    "gemma3_text": {"mlp_bias": False},
    "gpt2": {**_BIAS, "scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False},
    "llama": {},
    "mistral": _NO_BIAS,
    "phi3": _NO_BIAS,
    "qwen2": {"attention_bias": True, "mlp_bias": False},  # always on q, k and v, never on o
    "qwen3": {"mlp_bias": False},
    "roberta": _BIAS,
}
GEMMA: dict[str, Any] = dict(norm_offset=True, scaled_embedding=True)
OWN: dict[str, dict[str, Any]] = {  # what a family's code does and its file does not say
    "gemma": GEMMA,
    "gemma3_text": {**GEMMA, "qk_norm": True, "post_norms": True},
    "qwen3": {"qk_norm": True},
}
ENCODER: dict[str, Any] = dict(head="none", final_norm=False, embedding_norm=True, norm_first=False, causal=False)

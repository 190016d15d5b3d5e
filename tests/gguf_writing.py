"""What tests share that need a GGUF file: models written as llama.cpp's converter writes them, with its own package."""

import numpy as np

ARCHITECTURES = {
    "gpt2": "gpt2", "llama": "llama", "mistral": "llama", "phi3": "phi3", "qwen2": "qwen2", "qwen3": "qwen3",
    "gemma": "gemma", "gemma3_text": "gemma3",
}  # fmt: skip


def permuted(weight, heads):
    """Rows as a Llama's file has them: the two halves of each head's features interleaved."""
    return weight.reshape(heads, 2, len(weight) // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path, config, state, kind="F32", facts=None, blocks=None, drop=()):
    """A Hugging Face model as a GGUF file. config: transformers' own; state: {name: float32 array}.

    kind: of the matrices. facts: {key: value} that replace or are added, None for one that is left out; blocks:
    {tensor: (bytes, kind)} that replace; drop: tensors that are left out.
    """
    import gguf

    family = config.model_type
    arch = ARCHITECTURES[family]
    known = gguf.get_tensor_name_map(_arch(gguf, arch), config.num_hidden_layers)
    facts = dict(facts or {})
    writer = gguf.GGUFWriter(str(path), facts.pop("general.architecture", arch))
    said = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": getattr(config, "intermediate_size", None) or config.n_inner or 4 * config.hidden_size,
        "attention.head_count": config.num_attention_heads,
    }
    if family == "gpt2":
        said["attention.layer_norm_epsilon"] = config.layer_norm_epsilon
    else:
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        rope = config.rope_parameters
        rope = rope.get("full_attention", rope)
        said |= {
            "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
            "attention.head_count_kv": config.num_key_value_heads,
            "attention.key_length": dim,
            "attention.value_length": dim,
            "rope.freq_base": float(rope["rope_theta"]),
            "vocab_size": config.vocab_size,
        }
        said |= {"rope.dimension_count": dim} if arch in ("llama", "phi3") else {}
        said |= {"attention.sliding_window": config.sliding_window} if arch == "gemma3" else {}
    for key, value in ({f"{arch}.{key}": value for key, value in said.items()} | facts).items():
        if value is not None:
            add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            (writer.add_array if isinstance(value, list) else add[type(value)])(key, value)
    for name, array in state.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if arch == "llama" and ".q_proj." in name:
            array = permuted(array, config.num_attention_heads)
        if arch == "llama" and ".k_proj." in name:
            array = permuted(array, config.num_key_value_heads)
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            array = array + np.float32(1)
        if family == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            array = array.T
        theirs = name if name == "rope_freqs.weight" else known.get_name(name, try_suffixes=(".weight", ".bias"))
        if theirs in drop:
            continue
        as_kind = gguf.GGMLQuantizationType[kind if array.ndim > 1 else "F32"]
        raw = gguf.quants.quantize(np.ascontiguousarray(array, np.float32), as_kind)
        raw, as_kind = (blocks or {}).get(theirs, (raw, as_kind))
        writer.add_tensor(theirs, raw, raw_dtype=as_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _arch(gguf, name):
    return next(arch for arch, known in gguf.MODEL_ARCH_NAMES.items() if known == name)

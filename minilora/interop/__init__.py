"""Floor 5, other people's files: safetensors, GGUF, tokenizers, PEFT, kohya; their libraries load inside functions."""

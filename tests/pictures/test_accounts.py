"""Parameters and memory: the titles say what counting says."""

import minilora as ml


def test_the_accounts_say_what_counting_says(title):
    lora = ml.analysis.counting.count("gpt3-175b", rank=4)["trainable_parameters"]
    assert f"{lora / 1e6:.1f} million" in title("parameters")
    parts = ml.analysis.counting.count(
        "llama-2-7b", rank=8, target_modules=("*_proj",), length=512, bits=4, engine="flash"
    )["training_memory_bytes"]
    assert f"4-bit base {sum(parts.values()) / 1e9:.1f} GB" in title("memory")

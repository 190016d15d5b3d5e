"""Parameters and memory: the titles say what counting says."""

import minilora as ml
from minilora.analysis.exchange import exchange


def test_the_accounts_say_what_counting_says(title):
    lora = ml.analysis.counting.count("gpt3-175b", rank=4)["trainable_parameters"]
    assert f"{lora / 1e6:.1f} million" in title("parameters")
    parts = ml.analysis.counting.count(
        "llama-2-7b", rank=8, target_modules=("*_proj",), length=512, bits=4, engine="flash"
    )["training_memory_bytes"]
    assert f"4-bit base {sum(parts.values()) / 1e9:.1f} GB" in title("memory")


def test_what_nodes_wait_for_is_the_model_of_messages(title, figure_of):
    full, lora = exchange("llama-2-7b", "full")["ratio"], exchange("llama-2-7b", rank=8)["ratio"]
    assert title("exchange") == (
        "On 64 nodes at 10 Gbit/s full fine-tuning "
        f"waits {full:.2g} times as long as it computes, LoRA {lora:.2g} times"
    )
    drawn = [line.get_ydata() for line in figure_of("exchange").axes[0].lines[1:]]
    assert len(drawn) == 6 and all(len(ratios) == 8 for ratios in drawn)
    assert drawn[1][3] == full and drawn[4][3] == lora  # 64 nodes

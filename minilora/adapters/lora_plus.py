"""LoRA+: B learns faster than A (Hayou et al. 2024, "LoRA+", sections 3 and 4).

    A <- A - lr u(dA),   B <- B - ratio lr u(dB)        u: the optimiser's update;  the authors recommend ratio = 16

A's entries start of size 1/sqrt(d_in) and B's at zero, and B A x should change as much by a step of B as by one of A,
however wide the layer is. With one learning rate for both, as the width grows, B hardly moves or A moves too far.
"""

from typing import Any

from ..nn.checks import is_real, shown
from .state import check_model


def lora_plus(model: Any, ratio: float = 16) -> list[dict[str, Any]]:
    """The model's trainable parameters in two groups for an optimiser: `AdamW(lora_plus(model, 16), lr=1e-4)`.

    lr is A's learning rate and that of whatever else is trained (DoRA's magnitudes, unfrozen norms; PEFT counts vectors
    with B). Every lora_B has ratio times it. Raises ValueError where no lora_B is trained; the optimiser refuses a
    ratio that is not positive.
    """
    check_model(model, "lora_plus")
    if not is_real(ratio):
        raise ValueError(f"lora_plus: ratio = {shown(ratio)}, expected a number")
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    fast = [p for name, p in trained if name.endswith("lora_B")]
    if not fast:
        raise ValueError("lora_plus: the model trains no lora_B; add_lora(model, LoRAConfig()) puts them in")
    rest = [p for name, p in trained if not name.endswith("lora_B")]
    return [{"params": rest, "lr_ratio": 1.0}, {"params": fast, "lr_ratio": ratio}]

"""How fast a model writes, with cached keys and values: one sequence beside PyTorch, and what serving asks for."""

from typing import Any

import numpy as np

from ..adapters.lora import add_lora
from ..adapters.merge import merge_adapter
from ..adapters.qlora import quantize_model
from ..adapters.serving import rows_use
from ..nn.gpt import GPT
from ..studies.turns import Contender, ratio, take_turns
from .peers import LORA, Workload
from .pytorch import TorchGPT
from .rows import BATCHED, EAGER, GENERATION, MERGED, NF4, ONE_BY_ONE, TWO_ADAPTERS, UNMERGED, Row, row

PROMPTS = 8  # in the batch that is beside one prompt after the other


def generation_rows(size: str, turns: int) -> list[Row]:
    """Seconds a token, ours and PyTorch's, from one token to a full context; both write the likeliest token.

    Raises ArithmeticError where the two write different texts; LeftOut without PyTorch.
    """
    model = Workload(size, "full").model()
    count = model.config.block_size - 1
    prompt = np.array([[model.config.vocab_size // 2]])  # (1, 1)
    peer = TorchGPT(model)
    ours = lambda: model.generate(prompt, count, temperature=0)
    theirs = lambda: peer.generate(prompt, count)
    if not np.array_equal(ours(), theirs()):
        raise ArithmeticError(f"bench: at {size}, ours and PyTorch's model write different texts: no fair comparison")
    times = take_turns([Contender("ours", ours), Contender("theirs", theirs)], turns)
    return [row(GENERATION, size, EAGER, "s/token", ratio(times["ours"] / count, times["theirs"] / count))]


def serving_rows(size: str, turns: int) -> list[Row]:
    """Seconds a token with adapters that are not merged, beside the merged model; and of a batch of several prompts.

    One adapter; two, each for a row of a batch of two, beside the merged model on two rows; one on a base of NF4. And
    prompts of 1, 2, 3 ... tokens side by side, beside one after the other.
    """
    plain = Workload(size, "full")
    merged, unmerged, two = (add_lora(plain.model(), LORA) for _ in range(3))
    merge_adapter(merged)
    add_lora(two, LORA, name="other")
    few_bits = add_lora(quantize_model(plain.model()), LORA)
    start, count = plain.config.vocab_size // 2, plain.config.block_size - PROMPTS
    one, pair = np.full((1, 1), start), np.full((2, 1), start)
    prompts = [[start] * (1 + i) for i in range(PROMPTS)]

    def writing(name: str, model: GPT, prompt: Any) -> Contender:
        return Contender(name, lambda: model.generate(prompt, count, temperature=0))

    def one_by_one() -> None:
        for prompt in prompts:
            merged.generate(prompt, count, temperature=0)

    with rows_use(two, ["default", "other"]):
        contenders = [
            writing("merged", merged, one), writing("merged, two rows", merged, pair), writing(UNMERGED, unmerged, one),
            writing(TWO_ADAPTERS, two, pair), writing(NF4, few_bits, one), writing(BATCHED, merged, prompts),
            Contender(ONE_BY_ONE, one_by_one),
        ]  # fmt: skip
        times = take_turns(contenders, turns, strangers=False)
    sides = ((UNMERGED, "merged", MERGED, 1), (TWO_ADAPTERS, "merged, two rows", MERGED, 2), (NF4, "merged", MERGED, 1),
             (BATCHED, ONE_BY_ONE, ONE_BY_ONE, PROMPTS))  # fmt: skip
    return [
        row(what, size, against, "s/token", ratio(times[what] / (count * texts), times[beside] / (count * texts)))
        for what, beside, against, texts in sides
    ]

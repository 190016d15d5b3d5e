"""How fast a model writes: tokens of one sequence, one after the other, with cached keys and values."""

import numpy as np

from ..studies.turns import Contender, ratio, take_turns
from .peers import Workload
from .pytorch import TorchGPT
from .rows import EAGER, GENERATION, Row, row


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

"""Claims about results, in a lecture: what training gave here, on these settings, and may not give on others."""

import os
import re

from ..autograd.signatures import checked

STRICT = "MINILORA_CLAIMS"  # "strict" in the tests of the committed lectures: there a claim that fails is an error


@checked
def holds(claim: str, condition: bool) -> bool:
    """Print whether a claim about results holds here: -> the condition.

        ✓ LoRA ends below the base
        ✗ does not hold here: LoRA ends below the base. Why?

    For what depends on a text, a seed, a rank or a number of steps; a fact of mathematics stays an `assert`. With
    MINILORA_CLAIMS=strict, as the tests set it for the committed lectures, a claim that does not hold raises
    AssertionError. Raises TypeError for a condition that is not one truth value, such as an array.

    >>> holds("two runs with one seed agree", 1.0 == 1.0)
    ✓ two runs with one seed agree
    True
    """
    claim = re.sub(r"\s+", " ", claim).strip().rstrip(".")
    if not condition and os.environ.get(STRICT) == "strict":
        raise AssertionError(f"does not hold: {claim}")
    print(f"✓ {claim}" if condition else f"✗ does not hold here: {claim}. Why?")
    return bool(condition)

"""What a run is made of: settings that are checked where they are given."""

import pytest

import minilora as ml


@pytest.mark.parametrize("name", ["steps", "batch_size", "evaluate_every", "checkpoint_every", "evaluation_windows"])
def test_wrong_settings(name):
    with pytest.raises(ValueError, match=f"Settings: {name} = 0, expected 1 or more"):
        ml.Settings(**{name: 0})

"""Settings that every test shares."""

from hypothesis import settings

# Drawn cases are the same on every run, so that a red test stays red until it is mended; shared machines have no pace.
settings.register_profile("minilora", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("minilora")

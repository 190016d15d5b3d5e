"""Twenty steps of AdamW on the same batches: the loss curve is PyTorch's, with LoRA and with every weight trained."""

import numpy as np
import pytest

import minilora as ml
from minilora.training.backward import loss_and_gradients

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")

BAR = 1e-9  # relative
STEPS, BATCH = 20, 5  # five sequences do not split evenly over two cores
CONFIG = ml.GPTConfig(vocab_size=23, block_size=12, n_layer=2, n_head=2, n_embd=16)
ADAPTERS = {
    "all weights": None,
    "lora": ml.LoRAConfig(rank=4, alpha=8),
    "rslora on every matrix": ml.LoRAConfig(rank=3, alpha=6, target_modules="*", rank_stabilized=True, init="gaussian"),
}


@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
def test_loss_curve_equals_pytorch(adapter, max_norm, torch_weights, torch_gpt, relative_error):
    model = ml.GPT(CONFIG, rng=1).astype("float64")
    scale = 0.0
    if adapter is not None:
        ml.add_lora(model, adapter, rng=2)
        scale = adapter.alpha / (adapter.rank**0.5 if adapter.rank_stabilized else adapter.rank)
    weights = torch_weights(model)
    trained = [w for w in weights.values() if w.requires_grad]
    settings = dict(lr=1e-2, betas=(0.9, 0.99), weight_decay=0.05)
    optimizer, peer = ml.AdamW(model.named_parameters(), **settings), torch.optim.AdamW(trained, **settings)
    rng, ours, theirs = np.random.default_rng(3), [], []
    for _ in range(STEPS):
        first = rng.integers(CONFIG.vocab_size, size=(BATCH, 1))
        text = (first + 3 * np.arange(CONFIG.block_size + 1)) % CONFIG.vocab_size  # a pattern that can be learned
        ours.append(ml.train_step(model, optimizer, text[:, :-1], text[:, 1:], max_norm=max_norm))
        text = torch.tensor(text)
        logits = torch_gpt(weights, CONFIG, text[:, :-1], scale)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
        peer.zero_grad()
        loss.backward()
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(trained, max_norm)
        peer.step()
        theirs.append(loss.item())
    assert max(relative_error(np.array(a), np.array(b)) for a, b in zip(ours, theirs, strict=True)) <= BAR
    assert ours[-1] < ours[0]
    # The keys' bias has gradient zero but for rounding, which Adam blows up to steps; the loss does not depend on it.
    moved = {name: w for name, w in weights.items() if not name.endswith("k_proj.bias")}
    assert relative_error({name: model.state_dict()[name] for name in moved}, moved) <= BAR


def test_targets_of_minus_100_count_as_little_as_in_pytorch(torch_weights, torch_gpt, relative_error):
    """However many of them each piece of the batch has; the last two rows have none that counts."""
    model = ml.GPT(CONFIG, rng=1).astype("float64")
    weights, rng = torch_weights(model), np.random.default_rng(0)
    tokens, targets = rng.integers(CONFIG.vocab_size, size=(2, BATCH, CONFIG.block_size))
    targets[rng.random(targets.shape) < 0.6] = -100
    targets[-2:] = -100
    logits = torch_gpt(weights, CONFIG, torch.tensor(tokens))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten())
    loss.backward()
    expected = {name: w.grad for name, w in weights.items()}
    for pieces in (1, 2, 3, 5):
        ours, gradients = loss_and_gradients(model, model.parameters(), tokens, targets, pieces=pieces)
        assert relative_error(np.array(ours), loss) <= BAR
        assert relative_error(dict(zip(expected, gradients, strict=True)), expected) <= BAR

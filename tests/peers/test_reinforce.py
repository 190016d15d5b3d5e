"""The policy gradient, and ten steps down it, are PyTorch's on copied weights and the same texts."""

import numpy as np
import pytest

import minilora as ml
from minilora.training.reinforce import policy_gradient, write_episodes

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")

CONFIG = ml.GPTConfig(vocab_size=96, block_size=12, n_layer=2, n_head=2, n_embd=16)
STOP, SAMPLES, BAR = [3], 6, 1e-9


def torch_loss(torch_gpt, weights, scale, episodes, advantages):
    """-(1/n) sum_i A_i log pi(y_i), of what a mask says that was chosen."""
    tokens, targets = torch.tensor(episodes.tokens), torch.tensor(episodes.targets)
    log_pi = torch_gpt(weights, CONFIG, tokens, scale).log_softmax(-1)
    chosen = log_pi.gather(2, targets.clamp(min=0)[..., None])[..., 0] * (targets != -100)  # (n, T)
    return -(torch.tensor(advantages) * chosen.sum(1)).mean()


@pytest.mark.parametrize("rank", [None, 1, 4])
def test_gradients_and_steps_equal_pytorch(rank, torch_weights, torch_gpt, relative_error):
    model = ml.GPT(CONFIG, rng=1).astype("float64")
    rng = np.random.default_rng(0)
    if rank:
        ml.add_lora(model, ml.LoRAConfig(rank, 2 * rank, "*"), rng=2)
        for p in model.parameters(trainable=True):
            p.data[...] = rng.normal(0, 0.2, p.shape)
    weights = torch_weights(model)
    trained = {name: w for name, w in weights.items() if w.requires_grad}
    settings = dict(lr=1e-2, betas=(0.9, 0.99), weight_decay=0.0)
    optimizer, peer = ml.AdamW(model.named_parameters(), **settings), torch.optim.AdamW(trained.values(), **settings)
    for step in range(10):
        episodes = write_episodes(model, [5, 7], SAMPLES, 9, STOP, rng)
        rewards = np.array([text.count("a") + len(text) / 9 for text in episodes.texts])
        advantages = rewards - (rewards.sum() - rewards) / (SAMPLES - 1)
        loss, gradients = policy_gradient(model, optimizer.parameters, episodes, advantages)
        theirs = torch_loss(torch_gpt, weights, 2.0, episodes, advantages)
        peer.zero_grad()
        theirs.backward()
        assert abs(loss - theirs.item()) <= BAR * abs(theirs.item())
        if not step:
            ours = dict(zip(trained, gradients, strict=True))
            assert relative_error(ours, {name: w.grad for name, w in trained.items()}) <= BAR
        optimizer.step(gradients)
        peer.step()
    state = model.state_dict()
    moved = {name: w for name, w in trained.items() if not name.endswith("k_proj.bias")}  # whose gradient is rounding
    assert relative_error({name: state[name] for name in moved}, moved) <= 1e-7

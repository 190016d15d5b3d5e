"""Optimisers, schedule and clipping against PyTorch: 50 steps on the same gradients, in float64."""

import warnings

import numpy as np
import pytest

import minilora as ml
from minilora.training.optim import clip_gradients, cosine_schedule

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")

BAR = 1e-12  # relative
STEPS = 50
SHAPES = ((4, 3), (5,), (2, 3, 2), (1,))
RATES = np.random.default_rng(9).uniform(1e-3, 1e-1, STEPS)  # a rate that changes, as under a schedule

RULES = [
    (ml.SGD, torch.optim.SGD, {}),
    (ml.SGD, torch.optim.SGD, dict(weight_decay=0.1)),
    (ml.SGD, torch.optim.SGD, dict(momentum=0.9)),
    (ml.SGD, torch.optim.SGD, dict(momentum=0.5, weight_decay=0.3)),
    (ml.AdamW, torch.optim.AdamW, {}),
    (ml.AdamW, torch.optim.AdamW, dict(betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)),
    (ml.AdamW, torch.optim.AdamW, dict(betas=(0.0, 0.999), weight_decay=0.0)),
    (ml.AdamW, torch.optim.AdamW, dict(betas=(0.9, 0.0), weight_decay=0.5)),
    (ml.AdamW, torch.optim.AdamW, dict(betas=(0.99, 0.9999), eps=1e-2)),
]


def gradients(rng):
    """One gradient a parameter, of sizes from 1e-6 to 10, so that eps matters in some and not in others."""
    return [rng.normal(size=shape) * 10.0 ** rng.integers(-6, 2) for shape in SHAPES]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule[0].__name__} {rule[2]}")
def test_fifty_steps_equal_pytorch(rule, relative_error):
    make, make_peer, settings = rule
    rng = np.random.default_rng(0)
    start = [rng.normal(size=shape) for shape in SHAPES]
    ours = [ml.Tensor(value.copy(), requires_grad=True) for value in start]
    theirs = [torch.tensor(value, requires_grad=True) for value in start]
    optimizer, peer = make(ours, lr=RATES[0], **settings), make_peer(theirs, lr=RATES[0], **settings)
    for rate in RATES:
        optimizer.lr = peer.param_groups[0]["lr"] = rate
        drawn = gradients(rng)
        for p, g in zip(theirs, drawn, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step(drawn)
        peer.step()
        assert max(relative_error(p.data, q) for p, q in zip(ours, theirs, strict=True)) <= BAR


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule[0].__name__} {rule[2]}")
def test_a_parameter_that_the_loss_does_not_always_reach(rule, relative_error):
    """Without a gradient a parameter neither moves nor ages: its own steps count, not the optimiser's."""
    make, make_peer, settings = rule
    rng = np.random.default_rng(0)
    ours = [ml.Tensor(rng.normal(size=3), requires_grad=True) for _ in range(2)]
    theirs = [torch.tensor(p.data, requires_grad=True) for p in ours]
    optimizer, peer = make(ours, lr=0.01, **settings), make_peer(theirs, lr=0.01, **settings)
    for step in range(STEPS):
        for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            p.grad = rng.normal(size=3) if i == 0 or step % 7 == 5 else None
            q.grad = None if p.grad is None else torch.tensor(p.grad)
        optimizer.step()
        peer.step()
    assert max(relative_error(p.data, q) for p, q in zip(ours, theirs, strict=True)) <= BAR


@pytest.mark.parametrize(
    ("total", "warmup", "floor"), [(50, 0, 0.0), (50, 10, 0.0), (50, 10, 3e-4), (50, 2, 1e-3), (50, 1, 0.0)]
)
def test_schedule_equals_pytorch(total, warmup, floor, relative_error):
    """A line to the peak at step warmup - 1, then half a cosine: two of PyTorch's schedulers, one after the other."""
    peak = 3e-3
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    parts = [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total - warmup, eta_min=floor)]
    if warmup > 1:
        parts.insert(0, torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=warmup - 1))
    elif warmup:
        parts.insert(0, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0))
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, parts, [warmup]) if warmup else parts[0]
    rates = []
    with warnings.catch_warnings():  # SequentialLR itself calls its parts in a way that PyTorch warns of
        warnings.simplefilter("ignore")
        for _ in range(total):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
    ours = [cosine_schedule(step, total, peak, warmup, floor) for step in range(total)]
    assert max(relative_error(np.array([a]), np.array([b])) for a, b in zip(ours, rates, strict=True)) <= BAR


@pytest.mark.parametrize("max_norm", [1e-3, 0.5, 2.0, 1e3])
def test_clipping_equals_pytorch(max_norm, relative_error):
    rng = np.random.default_rng(1)
    clipped = 0
    for _ in range(STEPS):
        ours = gradients(rng)
        theirs = [torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in SHAPES]
        for p, g in zip(theirs, ours, strict=True):
            p.grad = torch.tensor(g)
        before = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
        norm = clip_gradients(ours, max_norm)
        clipped += norm > max_norm
        assert relative_error(np.array(norm), before) <= BAR
        assert max(relative_error(g, p.grad) for g, p in zip(ours, theirs, strict=True)) <= BAR
    assert clipped == 0 if max_norm == 1e3 else clipped > 0


def test_a_norm_just_below_the_bound_is_scaled_as_in_pytorch():
    """PyTorch divides by norm + 1e-6: a norm within 1e-6 below the bound is scaled down by that hair, too."""
    ours, peer = [np.array([1.0 - 5e-7])], torch.zeros(1, dtype=torch.float64)
    peer.grad = torch.tensor(ours[0])
    torch.nn.utils.clip_grad_norm_([peer], 1.0)
    clip_gradients(ours, 1.0)
    assert ours[0][0] == pytest.approx(peer.grad.item(), rel=BAR)


# 16 bits, where PyTorch's own update is sound


@pytest.mark.parametrize("max_norm", [1.0, 100.0, 1e4])
def test_clipping_16_bits_equals_pytorch(max_norm):
    """Ten gradients of 300, whose squares are no numbers of 16 bits."""
    ours = [np.full(1, 300, np.float16) for _ in range(10)]
    theirs = [torch.zeros(1, dtype=torch.float16, requires_grad=True) for _ in ours]
    for p, g in zip(theirs, ours, strict=True):
        p.grad = torch.tensor(g)
    before = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    assert clip_gradients(ours, max_norm) == pytest.approx(before.item(), rel=2**-10)
    for p, g in zip(theirs, ours, strict=True):
        assert g[0] == pytest.approx(p.grad.item(), rel=2**-9)


@pytest.mark.parametrize("rule", [*RULES[:4], (ml.AdamW, torch.optim.AdamW, dict(eps=1e-3))], ids=lambda r: str(r[2]))
def test_16_bits_follow_pytorchs_32_rounded_after_each_step(rule):
    """PyTorch keeps Adam's moments in 16 bits, where small squares vanish; its update in 32 bits, rounded, is ours."""
    make, make_peer, settings = rule
    rng = np.random.default_rng(0)
    start = rng.normal(size=30).astype(np.float16)
    ours = ml.Tensor(start.copy(), requires_grad=True)
    theirs = torch.tensor(start.astype(np.float32), requires_grad=True)
    optimizer, peer = make([ours], lr=0.01, **settings), make_peer([theirs], lr=0.01, **settings)
    for _ in range(STEPS):
        g = rng.normal(size=30).astype(np.float16)
        theirs.grad = torch.tensor(g.astype(np.float32))
        optimizer.step([g])
        peer.step()
        with torch.no_grad():
            theirs.copy_(theirs.half())
        np.testing.assert_allclose(ours.data, theirs.detach().numpy(), rtol=2**-9)
        with torch.no_grad():
            theirs.copy_(torch.tensor(ours.data.astype(np.float32)))


def test_a_sum_that_reaches_one_of_two_tables_trains_that_one(relative_error):
    """With decay and momentum the other one stays, as where PyTorch's p.grad is None."""
    rng = np.random.default_rng(0)
    ours = [ml.Tensor(rng.normal(size=3), requires_grad=True) for _ in range(2)]
    theirs = [torch.tensor(p.data, requires_grad=True) for p in ours]
    settings = dict(lr=0.1, weight_decay=0.5)
    optimizer, peer = ml.AdamW(ours, **settings), torch.optim.AdamW(theirs, **settings)
    for step in range(12):
        reached = step % 3 % 2
        gradients = ml.grad((ours[reached] * ours[reached]).sum(), ours, unused="none")
        peer.zero_grad()
        (theirs[reached] * theirs[reached]).sum().backward()
        optimizer.step(gradients)
        peer.step()
        assert max(relative_error(p.data, q) for p, q in zip(ours, theirs, strict=True)) <= BAR


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD])
def test_what_pytorch_refuses_is_refused(make):
    """Negative rates, decay and momentum; computed tensors; one tensor in two groups; no parameters."""
    ours = getattr(ml, make.__name__)
    names = ["lr", "weight_decay", "eps" if make is torch.optim.AdamW else "momentum"]
    tensor = lambda module: torch.ones(2, requires_grad=True) if module is torch else ml.Tensor([1.0, 1.0], True)
    cases = [lambda module, name=name: ([tensor(module)], {name: -0.1}) for name in names]
    cases += [
        lambda module: ([tensor(module) * 2], {}),
        lambda module: ([{"params": [p]} for p in [tensor(module)] * 2], {}),
        lambda module: ([], {}),
        lambda module: (tensor(module), {}),
        lambda module: ([3.0], {}),
    ]
    for case in cases:
        for module, optimizer in ((torch, make), (ml, ours)):
            parameters, options = case(module)
            with pytest.raises((ValueError, TypeError)):
                optimizer(parameters, **options)

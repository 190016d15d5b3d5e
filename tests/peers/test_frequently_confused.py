"""What the page Frequently confused says of PEFT and PyTorch, tried on them. That some of it is a trap is the point."""

import math
import warnings

import pytest

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
peft = pytest.importorskip("peft", reason="this test needs PEFT: pip install 'minilora[peers]'")
nn = torch.nn

X = torch.linspace(-1, 1, 12).reshape(2, 6)


def model(seed=0):
    """Two linear layers, 0 and 2, with biases."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 6))


def adapted(base, **settings):
    """The base with PEFT's LoRA on its first linear layer, unless settings say another."""
    return peft.get_peft_model(base, peft.LoraConfig(**{"target_modules": ["0"], **settings})).eval()


def test_peft_passes_over_a_target_that_matches_nothing_where_another_matches():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = adapted(model(), target_modules=["0", "no_such_layer"])
    assert sum("lora_A" in name for name, _ in found.named_parameters()) == 1
    with pytest.raises(ValueError, match="not found in the base model"):
        adapted(model(), target_modules=["no_such_layer"])


@pytest.mark.parametrize("init, of_rank", [(True, lambda r, d: 1 / math.sqrt(3 * d)), ("gaussian", lambda r, d: 1 / r)])
def test_peft_draws_a_as_wide_as_the_page_says(init, of_rank):
    torch.manual_seed(0)
    for r in (4, 32):
        found = adapted(nn.Sequential(nn.Linear(4096, 8)), r=r, init_lora_weights=init)
        (A,) = (p for name, p in found.named_parameters() if "lora_A" in name)
        assert A.std().item() == pytest.approx(of_rank(r, 4096), rel=0.03)


def test_peft_puts_the_adapter_into_the_model_that_is_given():
    base = model()
    before = base(X)
    for name, p in adapted(base).named_parameters():
        if "lora_B" in name:
            p.data += 1
    assert not torch.allclose(base(X), before)


def test_pefts_base_does_not_come_back_where_biases_are_trained():
    base = model()
    before = base(X)
    found = adapted(base, bias="all")
    for name, p in found.named_parameters():
        if name.endswith("bias"):
            assert p.requires_grad
            p.data += 1
    with pytest.warns(UserWarning, match="does not produce the same output"), found.disable_adapter():
        assert not torch.allclose(found(X), before)


def test_pefts_adapter_is_never_below_32_bits():
    for dtype in (torch.float16, torch.bfloat16):
        found = adapted(model().to(dtype))
        assert {p.dtype for name, p in found.named_parameters() if "lora" in name} == {torch.float32}


def test_peft_loads_an_adapter_onto_another_base_without_a_word(tmp_path):
    adapted(model(0)).save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = peft.PeftModel.from_pretrained(model(1), str(tmp_path))
    assert not torch.equal(found.get_base_model()[2].weight, model(0)[2].weight)


@pytest.mark.parametrize("trainable", [False, True])
def test_peft_loads_an_adapter_frozen_unless_it_is_asked_not_to(trainable, tmp_path):
    adapted(model()).save_pretrained(tmp_path)
    settings = {"is_trainable": True} if trainable else {}
    found = peft.PeftModel.from_pretrained(model(), str(tmp_path), **settings)
    assert any(p.requires_grad for p in found.parameters()) == trainable


def test_an_optimiser_made_before_the_adapter_changes_nothing_in_pytorch():
    base = model()
    optimizer = torch.optim.AdamW(base.parameters(), lr=0.1)
    found = adapted(base)
    before = {name: p.detach().clone() for name, p in found.named_parameters()}
    found(X).sum().backward()
    optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in found.named_parameters())


@pytest.mark.filterwarnings("ignore:None of the inputs")
@pytest.mark.parametrize("reentrant, marked, reaches", [(True, False, False), (True, True, True), (False, False, True)])
def test_pytorchs_older_checkpointing_asks_the_input(reentrant, marked, reaches):
    found = adapted(model())
    y = torch.utils.checkpoint.checkpoint(found, X.clone().requires_grad_(marked), use_reentrant=reentrant)
    assert y.requires_grad == reaches
    if reaches:
        y.sum().backward()
    assert all((p.grad is not None) == reaches for p in found.parameters() if p.requires_grad)

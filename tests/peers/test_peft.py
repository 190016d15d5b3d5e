"""LoRA against PEFT: the same weights in a PyTorch GPT that PEFT adapts, in float32 and in float64."""

import numpy as np
import pytest
from scipy.stats import ks_2samp

import minilora as ml

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
peft = pytest.importorskip("peft", reason="this test needs PEFT: pip install 'minilora[peers]'")
F, nn = torch.nn.functional, torch.nn

BARS = {"float32": 1e-5, "float64": 1e-10}  # relative
FLOORS = {"float32": 1e-2, "float64": 1e-4}  # in float32 a gradient 1e-3 of the largest is rounded by 1e-5 of itself
CONFIG = ml.GPTConfig(vocab_size=31, block_size=10, n_layer=2, n_head=2, n_embd=16)
TOKENS = np.random.default_rng(0).integers(CONFIG.vocab_size, size=(3, 8))
TARGETS = np.random.default_rng(1).integers(CONFIG.vocab_size, size=(3, 8))
TARGET_MODULES = [("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")]


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(c, c) for _ in range(4))

    def forward(self, x):
        split = [proj(x).unflatten(-1, (CONFIG.n_head, -1)).transpose(1, 2) for proj in self.projections()]
        return self.o_proj(F.scaled_dot_product_attention(*split, is_causal=True).transpose(1, 2).flatten(2))

    def projections(self):
        return self.q_proj, self.k_proj, self.v_proj


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(c, 4 * c), nn.Linear(4 * c, c)

    def forward(self, x):
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.ln_1, self.attn, self.ln_2, self.mlp = nn.LayerNorm(c), Attention(c), nn.LayerNorm(c), MLP(c)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class TorchGPT(nn.Module):
    """The same model under the same names, of PyTorch's layers, which PEFT knows how to adapt."""

    def __init__(self, config):
        super().__init__()
        c = config.n_embd
        self.wte, self.wpe = nn.Embedding(config.vocab_size, c), nn.Embedding(config.block_size, c)
        self.blocks, self.ln_f = nn.ModuleList(Block(c) for _ in range(config.n_layer)), nn.LayerNorm(c)

    def forward(self, tokens):
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]  # (B, T, C)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)  # (B, T, V)


def peft_config(config):
    """PEFT's words for the same adapter."""
    return peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=list(config.target_modules),
        use_rslora=config.rank_stabilized,
        init_lora_weights="gaussian" if config.init == "gaussian" else True,
    )


def our_name(name):
    """PEFT's name of a parameter, in our words."""
    return name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".default.weight", "")


def pair(config, dtype, randomize):
    """Our model and PEFT's, adapted alike and holding the same weights, base and adapter both."""
    model = randomize(ml.add_lora(ml.GPT(CONFIG), config).astype(dtype), np.random.default_rng(2))
    peer = peft.get_peft_model(TorchGPT(CONFIG), peft_config(config)).to(getattr(torch, dtype))
    state = model.state_dict()
    peer.load_state_dict({name: torch.tensor(state.pop(our_name(name))) for name in peer.state_dict()})
    assert not state, "PEFT adapts fewer layers than we do"
    return model, peer


def outputs(model):
    return model(TOKENS).data if isinstance(model, ml.GPT) else model(torch.tensor(TOKENS))


@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("rank_stabilized", [False, True], ids=["alpha/r", "alpha/sqrt(r)"])
@pytest.mark.parametrize("rank", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("target_modules", TARGET_MODULES, ids=["attention", "everything"])
class TestAgainstPEFT:
    @pytest.fixture
    def models(self, dtype, rank, rank_stabilized, target_modules, randomize):
        settings = dict(alpha=4, target_modules=target_modules, rank_stabilized=rank_stabilized)
        return pair(ml.LoRAConfig(rank, **settings), dtype, randomize)

    def test_outputs(self, models, dtype, relative_error):
        model, peer = models
        assert relative_error(outputs(model), outputs(peer)) <= BARS[dtype]

    def test_what_trains_and_its_gradients(self, models, dtype, relative_error):
        model, peer = models
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert model.count(trainable=True) == peer.get_nb_trainable_parameters()[0]
        gradients = ml.grad(model.loss(TOKENS, TARGETS), list(trained.values()))
        F.cross_entropy(outputs(peer).flatten(0, 1), torch.tensor(TARGETS).flatten()).backward()
        theirs = {our_name(name): p.grad for name, p in peer.named_parameters() if p.requires_grad}
        assert relative_error(dict(zip(trained, gradients, strict=True)), theirs, FLOORS[dtype]) <= BARS[dtype]

    def test_delta_and_merged_weights(self, models, dtype, relative_error):
        model, peer = models
        before, deltas = outputs(model), ml.delta_weights(model)
        layers = {our_name(n): m for n, m in peer.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
        assert relative_error(deltas, {n: m.get_delta_weight("default") for n, m in layers.items()}) <= BARS[dtype]
        ml.merge_lora(model)
        merged = peer.merge_and_unload()
        assert relative_error(ml.remove_lora(model).state_dict(), merged.state_dict()) <= BARS[dtype]
        assert relative_error(outputs(model), outputs(merged)) <= BARS[dtype]
        assert relative_error(before, outputs(merged)) <= BARS[dtype]

    def test_disabled_adapters_leave_the_base(self, models, dtype, relative_error):
        model, peer = models
        base = ml.GPT(CONFIG).astype(dtype)
        base.load_state_dict({name: value for name, value in model.state_dict().items() if "lora_" not in name})
        with ml.lora_disabled(model), peer.disable_adapter():
            assert np.array_equal(outputs(model), outputs(base))
            assert relative_error(outputs(model), outputs(peer)) <= BARS[dtype]
        assert relative_error(outputs(base), outputs(peer)) > 1e-2  # the adapter had something to say


@pytest.mark.parametrize("rank", [4, 16])
@pytest.mark.parametrize("init", ["kaiming", "gaussian"])
def test_initial_matrices_have_the_same_distribution(init, rank):
    """Kolmogorov and Smirnov's test on A, of layers with d_in = 64 and 256. The seeds are fixed: no luck involved."""
    config = ml.GPTConfig(vocab_size=8, block_size=4, n_layer=2, n_head=2, n_embd=64)
    adapter = ml.LoRAConfig(rank, target_modules=("up_proj", "down_proj"), init=init)
    model = ml.add_lora(ml.GPT(config), adapter, rng=0)
    torch.manual_seed(0)
    theirs = {our_name(n): p for n, p in peft.get_peft_model(TorchGPT(config), peft_config(adapter)).named_parameters()}
    matrices = {name: p.data for name, p in model.named_parameters() if "lora_" in name}
    assert matrices.keys() == {name for name in theirs if "lora_" in name}
    for name, ours in matrices.items():
        peer = theirs[name].detach().numpy()
        if name.endswith("lora_B"):
            assert not ours.any() and not peer.any()
            continue
        assert ks_2samp(ours.ravel(), peer.ravel()).pvalue > 1e-3
        assert init == "gaussian" or max(abs(ours).max(), abs(peer).max()) <= 1 / ours.shape[1] ** 0.5

"""Prompt tuning and prefix tuning against PEFT: the same weights in transformers' GPT-2, with PEFT's virtual tokens."""

import numpy as np
import pytest
from scipy.stats import ks_2samp

import minilora as ml
from minilora.adapters.attach import add_adapter
from minilora.adapters.prefix import PrefixConfig, fold_prefix
from minilora.adapters.prompt import PromptConfig
from minilora.adapters.state import adapter_parameters

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
peft = pytest.importorskip("peft", reason="this test needs PEFT: pip install 'minilora[peers]'")
F = torch.nn.functional

BARS = {"float32": 1e-5, "float64": 1e-10}  # relative
FLOORS = {"float32": 1e-2, "float64": 1e-4}  # in float32 a gradient 1e-3 of the largest is rounded by 1e-5 of itself
SIZES = ml.GPTConfig(vocab_size=31, block_size=20, n_layer=2, n_head=2, n_embd=16)
TOKENS = np.random.default_rng(0).integers(31, size=(3, 8))
TARGETS = np.random.default_rng(1).integers(31, size=(3, 8))
NETWORK = {"inner": "transform.0", "outer": "transform.2"}  # our names of the network's layers, and PEFT's


def peft_config(config):
    """PEFT's words for the same method."""
    if isinstance(config, PromptConfig):
        vocabulary = dict(prompt_tuning_init="SAMPLE_VOCAB")
        return peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=config.tokens, **vocabulary)
    network = dict(prefix_projection=True, encoder_hidden_size=config.hidden) if config.hidden else {}
    return peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=config.tokens, **network)


def as_ours(named, sizes, tokens):
    """What PEFT's encoder holds, parameters or gradients, under our names and in our shapes.

    A plain prefix is one row of 2 L C numbers a token: for each block its key, then its value.
    """
    found = {}
    for name, value in named.items():
        layer, _, part = name.rpartition(".")
        if layer != "embedding":
            found[f"front.{next(k for k, v in NETWORK.items() if v == layer)}.{part}"] = value
        elif value.shape[1] == sizes.n_embd:
            found["front.embedding" if "transform.0.bias" in named else "front.prompt"] = value
        else:
            both = value.reshape(tokens, sizes.n_layer, 2, sizes.n_embd).permute(2, 1, 0, 3)  # (2, L, P, C)
            found |= {"front.keys": both[0], "front.values": both[1]}
    return found


class Peer:
    """PEFT's model, with its encoder's parameters seen under our names."""

    def __init__(self, gpt2, config, sizes=SIZES):
        self.model = peft.get_peft_model(gpt2, peft_config(config)).to(gpt2.dtype).train()
        self.encoder = self.model.prompt_encoder["default"]
        self.config, self.sizes = config, sizes

    def parameters(self):
        return as_ours(dict(self.encoder.named_parameters()), self.sizes, self.config.tokens)

    def gradients(self):
        named = {name: p.grad for name, p in self.encoder.named_parameters()}
        return as_ours(named, self.sizes, self.config.tokens)

    def logits(self, tokens=TOKENS):
        """At the text's positions: PEFT's prompt tuning returns those of the prompt, too."""
        return self.model(torch.tensor(tokens)).logits[:, -tokens.shape[1] :]


@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize(
    "config",
    [PromptConfig(1), PromptConfig(5), PrefixConfig(1), PrefixConfig(5), PrefixConfig(5, hidden=7)],
    ids=["prompt of 1", "prompt of 5", "prefix of 1", "prefix of 5", "prefix with a network"],
)
class TestAgainstPEFT:
    @pytest.fixture
    def models(self, config, dtype, randomize, transformers_gpt2):
        model = randomize(ml.GPT(SIZES).astype(dtype), np.random.default_rng(2))
        peer = Peer(transformers_gpt2(model), config)
        own, theirs = adapter_parameters(add_adapter(model, config)), peer.parameters()
        assert own.keys() == theirs.keys()
        rng = np.random.default_rng(3)
        with torch.no_grad():
            for name, p in own.items():
                p.data[...] = rng.normal(0, 0.5, p.shape)
                theirs[name].copy_(torch.tensor(p.data))  # views of PEFT's own, so that this fills them
        return model, peer

    def test_logits(self, models, dtype, relative_error):
        model, peer = models
        assert relative_error(model(TOKENS).data, peer.logits()) <= BARS[dtype]
        with ml.lora_disabled(model):
            assert relative_error(model(TOKENS).data, peer.logits()) > 1e-2  # the virtual tokens had something to say

    def test_what_trains_and_its_gradients(self, models, dtype, relative_error):
        model, peer = models
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert model.count(trainable=True) == peer.model.get_nb_trainable_parameters()[0]
        gradients = ml.grad(model.loss(TOKENS, TARGETS), list(trained.values()))
        F.cross_entropy(peer.logits().flatten(0, 1), torch.tensor(TARGETS).flatten()).backward()
        ours = dict(zip(trained, gradients, strict=True))
        assert relative_error(ours, peer.gradients(), FLOORS[dtype]) <= BARS[dtype]

    def test_a_greedy_continuation(self, models, dtype):
        """Ours goes on from its cache, theirs reads the whole text again for every token.

        PEFT's own `generate` cannot judge: transformers 5.24 calls the cache `cache`, PEFT 0.21 hands its virtual
        tokens over as `past_key_values`, which is then ignored: the base model's continuation comes back.
        """
        model, peer = models
        theirs = TOKENS[:, :4]
        peer.model.eval()
        with torch.no_grad():
            for _ in range(6):
                best = peer.logits(theirs)[:, -1].argmax(dim=-1).numpy()  # (B,)
                theirs = np.concatenate([theirs, best[:, None]], axis=1)  # (B, T + 1)
        assert (model.generate(TOKENS[:, :4], 6, temperature=0) == theirs).all()
        with ml.lora_disabled(model):
            assert (model.generate(TOKENS[:, :4], 6, temperature=0) != theirs).any()


def test_a_folded_prefix_is_what_peft_saves(randomize, transformers_gpt2, relative_error):
    """PEFT, too, stores the network's last output in place of the network."""
    config = PrefixConfig(5, hidden=7)
    model = randomize(ml.GPT(SIZES).astype("float64"), np.random.default_rng(2))
    peer = Peer(transformers_gpt2(model), config)
    add_adapter(model, config)
    for name, p in adapter_parameters(model).items():
        p.data[...] = peer.parameters()[name].detach().numpy()
    saved = peft.get_peft_model_state_dict(peer.model)["prompt_embeddings"]
    theirs = as_ours({"embedding.weight": saved}, SIZES, 5)
    fold_prefix(model)
    assert relative_error({name: p.data for name, p in adapter_parameters(model).items()}, theirs) <= 1e-10


@pytest.mark.parametrize("config", [PrefixConfig(30), PrefixConfig(30, hidden=48), PromptConfig(30)], ids=str)
def test_starts_have_the_same_distribution(config, transformers_gpt2):
    """Kolmogorov and Smirnov's test, on every parameter that trains. The seeds are fixed: no luck involved."""
    sizes = ml.GPTConfig(vocab_size=31, block_size=40, n_layer=2, n_head=2, n_embd=64)
    model = ml.GPT(sizes)
    torch.manual_seed(0)
    peer = Peer(transformers_gpt2(model), config, sizes)
    theirs, ours = peer.parameters(), adapter_parameters(add_adapter(model, config))
    assert ours.keys() == theirs.keys()
    for name, p in ours.items():
        assert ks_2samp(p.data.ravel(), theirs[name].detach().numpy().ravel()).pvalue > 1e-3, name

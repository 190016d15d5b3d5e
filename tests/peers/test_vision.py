"""Vision transformers beside transformers' own: drawn configurations, copied weights, folders both ways, PEFT."""

import numpy as np
import pytest
from test_transformer import with_precision

import minilora as ml
from minilora.interop.vit_files import names_in_file, read_config
from minilora.nn.vision import ViT

torch = pytest.importorskip("torch", reason="the peers' tests need PyTorch: pip install 'minilora[peers]'")
transformers = pytest.importorskip("transformers", reason="this test needs transformers: pip install 'minilora[peers]'")
pytest.importorskip("safetensors.torch")

BOUND = {"float32": 1e-5, "float64": 1e-10}


def drawn(seed):
    rng = np.random.default_rng(seed)
    heads, patch = int(rng.choice([1, 2, 3])), int(rng.choice([2, 4]))
    return transformers.ViTConfig(
        image_size=patch * int(rng.choice([1, 2, 3])), patch_size=patch, num_channels=int(rng.choice([1, 3])),
        hidden_size=heads * 4, num_hidden_layers=int(rng.choice([1, 3])), num_attention_heads=heads,
        intermediate_size=int(rng.integers(5, 30)), hidden_act=str(rng.choice(["gelu", "gelu_new", "relu"])),
        qkv_bias=bool(rng.choice([True, False])), layer_norm_eps=float(rng.choice([1e-12, 1e-5])), num_labels=3,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="eager",
    )  # fmt: skip


def theirs_of(config, seed, kind=None):
    model, rng = (kind or transformers.ViTForImageClassification)(config).eval(), np.random.default_rng(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.tensor((p.ndim == 1) + rng.normal(0, 0.15, p.shape)))
    return model


def batch(config, seed, n=3):
    rng = np.random.default_rng(seed)
    shape = n, config.num_channels, config.image_size, config.image_size
    return rng.normal(size=shape), rng.integers(0, 3, n)


def error(ours, theirs):
    theirs = theirs.detach().numpy()
    return np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1)


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("seed", range(6))
def test_logits_and_gradients(seed, dtype, tmp_path):
    config = drawn(seed)
    theirs = theirs_of(config, seed)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = ml.load_pretrained(tmp_path / "theirs", dtype)
    theirs = theirs.to(getattr(torch, dtype))
    images, labels = batch(config, seed)
    x = torch.tensor(images, dtype=getattr(torch, dtype))
    given = images.astype(dtype)
    with with_precision(dtype):
        logits = theirs(x).logits
    assert error(ours(given).data, logits) < BOUND[dtype]
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels))
    loss.backward()
    taken = ours.loss(given, labels)
    assert abs(taken.item() - loss.item()) < BOUND[dtype] * max(loss.item(), 1)
    gradients = dict(zip(names_in_file(ours), ml.grad(taken, ours.parameters()), strict=True))
    known = {renamed(name): p.grad for name, p in theirs.named_parameters()}
    assert len(known) == len(gradients)
    for name, g in gradients.items():
        other = known[names_in_file(ours)[name]]
        assert error(g.reshape(other.shape), other) < BOUND[dtype], name


def renamed(name):
    """The name in a file of a parameter in memory."""
    for memory, file in (
        ("vit.layers.", "vit.encoder.layer."), ("attention.q_proj", "attention.attention.query"),
        ("attention.k_proj", "attention.attention.key"), ("attention.v_proj", "attention.attention.value"),
        ("attention.o_proj", "attention.output.dense"), ("mlp.fc1", "intermediate.dense"), ("mlp.fc2", "output.dense"),
    ):  # fmt: skip
        name = name.replace(memory, file)
    return name


def test_attention_maps(tmp_path):
    config = drawn(1)
    theirs = theirs_of(config, 1)
    theirs.save_pretrained(tmp_path)
    images, _ = batch(config, 1)
    maps = theirs(torch.tensor(images, dtype=torch.float32), output_attentions=True).attentions
    ours = ml.load_pretrained(tmp_path).attention_maps(images.astype("float32"))
    assert error(ours, torch.stack(maps, dim=1)) < 1e-5


@pytest.mark.parametrize("channels", [1, 3])
def test_our_folder_is_theirs(channels, tmp_path):
    sizes = dict(image_size=8, patch_size=4, channels=channels, n_layer=2, n_head=2, n_embd=8, labels=3)
    ours = ml.ViT(ml.ViTConfig(**sizes, activation="gelu_tanh"), rng=3)
    ours.labels = ("cat", "dog", "eel")
    ml.save_pretrained(ours, tmp_path)
    theirs = transformers.ViTForImageClassification.from_pretrained(tmp_path).eval()
    assert theirs.config.id2label == {0: "cat", 1: "dog", 2: "eel"}
    images = np.random.default_rng(0).random((2, channels, 8, 8)).astype("float32")
    assert error(ours(images).data, theirs(torch.tensor(images)).logits) < 1e-5
    again = ml.load_pretrained(tmp_path)
    assert again.labels == ours.labels and isinstance(again, ViT)
    np.testing.assert_array_equal(again(images).data, ours(images).data)
    half = ml.load_pretrained(tmp_path, "float16")
    assert 0 < np.abs(half(images).data - ours(images).data).max() < 1e-2


def test_a_bare_model_gets_a_head_to_train(tmp_path):
    config = drawn(2)
    theirs = theirs_of(config, 2, transformers.ViTModel)
    theirs.save_pretrained(tmp_path)
    ours = ml.load_pretrained(tmp_path)
    images, _ = batch(config, 2)
    hidden = theirs(torch.tensor(images, dtype=torch.float32)).last_hidden_state
    given = images.astype("float32")
    assert error(ours.ln_f(ours.hidden(given)).data, hidden) < 1e-5
    assert not ours(given).data.any()
    assert ml.add_classifier(ours, ["a", "b", "c", "d"])(given).shape == (3, 4)


def test_defaults_are_theirs():
    plain = transformers.ViTConfig().to_dict()
    assert read_config({"model_type": "vit"}) == read_config(plain)


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_goes_to_peft_and_comes_back(dora, tmp_path):
    peft = pytest.importorskip("peft", reason="this test needs PEFT: pip install 'minilora[peers]'")
    config = drawn(3)
    theirs_of(config, 3).save_pretrained(tmp_path / "base")
    kind = ml.DoRAConfig if dora else ml.LoRAConfig
    ours = ml.load_pretrained(tmp_path / "base")
    modules = ("q_proj", "v_proj", "up_proj", "down_proj")
    ml.add_adapter(ours, kind(rank=2, target_modules=modules, modules_to_save=("classifier",)))
    rng = np.random.default_rng(0)
    for p in ours.parameters(trainable=True):
        p.data = p.data + rng.normal(0, 0.1, p.shape).astype("float32")
    images, _ = batch(config, 3)
    given = images.astype("float32")
    ml.save_adapter(ours, tmp_path / "adapter", format="peft")
    base = transformers.ViTForImageClassification.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    logits = theirs(pixel_values=torch.tensor(given)).logits
    assert error(ours(given).data, logits) < 1e-5
    theirs.save_pretrained(tmp_path / "back")
    again = ml.load_adapter(ml.load_pretrained(tmp_path / "base"), tmp_path / "back")
    assert error(again(given).data, logits) < 1e-5


def test_what_has_no_name_in_peft_is_refused(tmp_path):
    model = ml.add_lora(ml.ViT(ml.ViTConfig()), ml.LoRAConfig(rank=2, target_modules=("patch_proj",)))
    with pytest.raises(ValueError, match=r"^save_adapter: PEFT's files have no name for patch_proj"):
        ml.save_adapter(model, tmp_path / "adapter", format="peft")

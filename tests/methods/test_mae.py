"""MAE: the authors' loss and gradients through the method's own functions; its ablations."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.augment import policies
from ssl_jax.contract.method import Context, Run
from ssl_jax.errors import UserError
from ssl_jax.exchange import torch_weights
from ssl_jax.methods import mae
from ssl_jax.models.decoders.mae import Decoder
from ssl_jax.models.vit import ViT, patchify
from ssl_jax.runs import config as configs

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
RUN = Run(64, 16, 4, 10)
DECODER = {"width": 16, "depth": 1, "heads": 2, "mlp": 4.0}


def context():
    zero = jnp.zeros((), jnp.int32)
    return Context(zero, zero, jnp.zeros(()), jax.random.key(3), None)


def make(**fields):
    """The method with the fixture's networks: 16 patches of 8 × 8 × 3."""
    config, _ = configs.load("configs/mae.py:digits")
    config.data.channels = 3
    with config.unlocked():
        model = {"size": 32, "patch": 8, "width": 32, "depth": 2, "heads": 4, "pool": "token"}
        config.model.update({**model, **fields.pop("model", {})})
        config.method.decoder = DECODER
        config.views.image = policies.make("none", 32)._asdict()
        config.method.update(fields)
    return mae.make(config, RUN)


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN / "mae_tiny.npz"))


@pytest.fixture(scope="module")
def params(golden):
    state = {k[3:]: v for k, v in golden.items() if k.startswith("sd/")}
    net = ViT(size=32, patch=8, width=32, depth=2, heads=4)
    encoder = torch_weights.vit(net, state, drop=("decoder_", "mask_token"))["params"]
    # The decoder's blocks as those of a ViT whose patches and class token are thrown away.
    inner = {k.removeprefix("decoder_"): v for k, v in state.items() if k.startswith("decoder_")}
    inner["patch_embed.proj.weight"] = np.zeros((16, 3, 8, 8))
    inner["patch_embed.proj.bias"], inner["cls_token"] = np.zeros(16), np.zeros(16)
    shell = ViT(size=32, patch=8, width=16, depth=1, heads=2)
    blocks = torch_weights.vit(shell, inner, drop=("embed", "pred"))["params"]
    decoder = {k: v for k, v in blocks.items() if k == "norm" or k.startswith("blocks_")}
    for ours, theirs in (("embed", "embed"), ("predict", "pred")):
        decoder[ours] = {
            "kernel": jnp.asarray(inner[f"{theirs}.weight"].T),
            "bias": jnp.asarray(inner[f"{theirs}.bias"]),
        }
    decoder["mask_token"] = jnp.asarray(state["mask_token"].reshape(-1))
    return {"encoder": encoder, "decoder": decoder}


def views(golden, mask):
    return {
        "image": jnp.asarray(golden["imgs"].transpose(0, 2, 3, 1)),
        "mask": jnp.asarray(golden[mask].astype(bool)),
    }


def close(got, want, tolerance=1e-4):
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * np.abs(want).max())


def test_init_draws_the_parameters_of_the_official_model(golden, params):
    drawn, state = jax.jit(make().init)(jax.random.key(0), views(golden, "mask"))
    assert state == {}
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, params)


@pytest.mark.parametrize("normalise, suffix", [(False, "nopix"), (True, "normpix")])
def test_loss_and_gradients_are_the_authors(golden, params, normalise, suffix):
    method = make(normalise_pixels=normalise)
    f = jax.value_and_grad(method.loss, has_aux=True)
    (loss, (state, metrics)), g = jax.jit(lambda p, v: f(p, {}, v, context()))(
        params, views(golden, "mask")
    )
    np.testing.assert_allclose(loss, golden[f"loss_{suffix}"], rtol=1e-5)
    assert state == {} and -1 < metrics["explained"] < 1
    encoder, decoder = g["encoder"], g["decoder"]
    ours = {
        "cls_token": encoder["class_token"],
        "mask_token": decoder["mask_token"],
        # [p·p·C, D] -> [D, C, p, p]
        "patch_embed.proj.weight": encoder["patch_embed"]["kernel"]
        .reshape(8, 8, 3, 32)
        .transpose(3, 2, 0, 1),
        "blocks.0.attn.qkv.weight": encoder["blocks_0"]["attn"]["qkv"]["kernel"].T,
        "blocks.1.mlp.fc1.bias": encoder["blocks_1"]["fc1"]["bias"],
        "norm.weight": encoder["norm"]["scale"],
        "decoder_embed.weight": decoder["embed"]["kernel"].T,
        "decoder_pred.weight": decoder["predict"]["kernel"].T,
    }
    wanted = {k for k in golden if k.startswith(f"grad_{suffix}/")}
    assert {f"grad_{suffix}/{name}" for name in ours} == wanted
    for name, got in ours.items():
        want = golden[f"grad_{suffix}/{name}"]
        close(np.asarray(got).reshape(want.shape), want)


def test_half_of_the_patches(golden, params):
    method = make(ratio=0.5)
    loss, _ = jax.jit(lambda p, v: method.loss(p, {}, v, context()))(
        params, views(golden, "mask50")
    )
    np.testing.assert_allclose(loss, golden["loss50_normpix"], rtol=1e-5)


def test_the_decoder_predicts_what_the_authors_does(golden, params):
    """Its tokens are row by row; the official ones lie in the order of their noise."""
    order = np.argsort(np.argsort(golden["noise"], 1)[:, :4], 1)
    latent = golden["latent"]
    visible = np.take_along_axis(latent[:, 1:], order[..., None], 1)
    tokens = np.concatenate([latent[:, :1], visible], 1)
    decoder = Decoder(out=192, **DECODER)
    got = decoder.apply({"params": params["decoder"]}, tokens, golden["mask"].astype(bool))
    close(got, golden["pred"])


@pytest.mark.parametrize("masking, visible", [("random", 4), ("block", 4), ("grid", 4)])
def test_every_masking_draws_a_mask_for_each_image(masking, visible):
    method = make(masking=masking)
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), dtype=np.uint8)
    drawn = jax.jit(method.views)(jax.random.key(1), {"image": image}, context())
    assert drawn["image"].shape == (32, 32, 32, 3) and drawn["mask"].shape == (32, 16)
    assert set(np.asarray(~drawn["mask"]).sum(1)) == {visible}
    assert len({m.tobytes() for m in np.asarray(drawn["mask"])}) > (3 if masking == "grid" else 8)


@pytest.mark.parametrize("mask_tokens", [False, True])
def test_what_the_encoder_sees(golden, mask_tokens):
    """Visible pixels of 0 and hidden ones of any value: the patch embedding must not notice."""
    method = make(encoder_mask_tokens=mask_tokens)
    v = views(golden, "mask")
    hidden = v["mask"].reshape(3, 4, 4).repeat(8, 1).repeat(8, 2)[..., None]
    v["image"] = jnp.where(hidden, v["image"], 0.0)

    @jax.jit
    def gradient(key, v):
        params, _ = method.init(key, v)
        return jax.grad(lambda p: method.loss(p, {}, v, context())[0])(params)

    g = gradient(jax.random.key(0), v)
    assert not np.any(g["encoder"]["patch_embed"]["kernel"])
    assert np.any(g["encoder"]["patch_embed"]["bias"])
    # One mask token: the encoder's, or the decoder's.
    assert ("mask_token" in g) == mask_tokens == ("mask_token" not in g["decoder"])
    token = g["mask_token"] if mask_tokens else g["decoder"]["mask_token"]
    assert token.shape == ((32,) if mask_tokens else (16,)) and np.all(token != 0)


def test_drop_path_of_the_model_acts_in_training(golden, params):
    v = views(golden, "mask")
    losses = [
        make(model={"drop_path": rate}).loss(params, {}, v, context())[0] for rate in (0.0, 0.9)
    ]
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize(
    "preset, patches", [("imagenet", (14, 49)), ("cifar10", (8, 16)), ("digits", (7, 12))]
)
def test_presets_show_a_quarter_of_the_patches(preset, patches, monkeypatch):
    config, _ = configs.load(f"configs/mae.py:{preset}")
    made = []
    original = mae.masks.make
    monkeypatch.setattr(
        mae.masks, "make", lambda *a: made.append((a[1], original(*a).visible)) or original(*a)
    )
    mae.make(config, RUN)
    assert made == [patches]


def test_user_errors():
    config, _ = configs.load("configs/mae.py:digits")
    config.views.image.size = 30
    with pytest.raises(UserError, match="size 30 is no multiple of 4"):
        mae.make(config, RUN)
    with pytest.raises(UserError, match="Did you mean block"):
        make(masking="blocks")
    simclr, _ = configs.load("configs/simclr.py:digits")
    config.model = simclr.model
    with pytest.raises(UserError, match="the patches of a vit"):
        mae.make(config, RUN)


@pytest.mark.parametrize("normalise", [True, False])
def test_the_page_shows_reconstructions(golden, params, normalise):
    method = make(normalise_pixels=normalise)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    # A decoder that says 0 for every pixel: of a normalised patch that is its mean.
    blank = jax.tree.map(jnp.zeros_like, params["decoder"]["predict"])
    params = {**params, "decoder": {**params["decoder"], "predict": blank}}
    show = method.show["reconstructions"]
    variables = show.variables(params, {})
    drawn = jax.jit(show.draw)(variables, {"image": images}, jax.random.key(0))
    found = {name: np.asarray(x) for name, x in drawn.items()}
    assert set(found) == {"original", "visible", "prediction", "filled in"}
    assert {(x.shape, x.dtype.name) for x in found.values()} == {(images.shape, "uint8")}
    np.testing.assert_array_equal(found["original"], images)  # as large as the view
    grey = patchify(np.full_like(images, 128), 8)  # round(255 · 0.5)
    true, visible = patchify(images, 8), patchify(found["visible"], 8)
    hidden = (visible == grey).all(-1)  # [n, N]
    assert (hidden.sum(1) == 12).all()
    np.testing.assert_array_equal(visible[~hidden], true[~hidden])
    zero = (true / 255).mean(-1, keepdims=True) if normalise else np.zeros((1, 1, 1))
    expected = 255 * np.broadcast_to(zero, true.shape)
    prediction, filled = patchify(found["prediction"], 8), patchify(found["filled in"], 8)
    np.testing.assert_allclose(prediction, expected, atol=0.51)
    np.testing.assert_array_equal(filled[~hidden], true[~hidden])
    np.testing.assert_array_equal(filled[hidden], prediction[hidden])

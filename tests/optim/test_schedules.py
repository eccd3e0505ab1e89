import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.optim import schedules

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def learning_rates(fields, steps, batch=256, per_epoch=7):
    """The schedule at steps 0 … steps − 1, traced once over the step."""
    schedule = schedules.make(fields, batch, per_epoch, steps)
    return jax.jit(jax.vmap(schedule))(jnp.arange(steps))


BARLOW = {"scaling": "linear", "warmup_epochs": 10, "final": 0.001}
SWAV = {"schedule": "cosine_peak_twice", "warmup_epochs": 3}
DINO = SWAV | {"learning_rate": 5e-4, "final": 1e-6 / 5e-4}
OFFICIAL = {
    "barlowtwins_weights": (BARLOW | {"learning_rate": 0.2}, 512, 7),
    "barlowtwins_biases": (BARLOW | {"learning_rate": 0.0048}, 512, 7),
    "vicreg": (BARLOW | {"learning_rate": 0.2}, 512, 7),
    "mocov3_lr": ({"learning_rate": 0.6, "warmup_epochs": 4}, 256, 4),
    "mae_lr": ({"learning_rate": 1e-3, "final": 0.01, "warmup_epochs": 4}, 256, 4),
    "moco_cos": ({"learning_rate": 0.03, "schedule": "cosine_per_epoch"}, 256, 1),
    "moco_step": (
        {"learning_rate": 0.03, "schedule": "step", "milestones": (120, 160)},
        256,
        1,
    ),
    "swav": (SWAV | {"learning_rate": 4.8, "final": 0.001, "warmup_start": 0.3 / 4.8}, 256, 7),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_equals_official_arrays(name):
    fields, batch, per_epoch = OFFICIAL[name]
    want = np.load(GOLDEN / "lr_schedules.npz")[name]
    got = learning_rates(fields, len(want), batch, per_epoch)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7 * want.max())


@pytest.mark.parametrize("name, start", [("lr", 0.0), ("lr_start", 1e-5)])
def test_equals_dino(name, start):
    want = np.load(GOLDEN / "dino_cosine_scheduler.npz")[name]
    got = learning_rates(DINO | {"warmup_start": start / 5e-4}, 70)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7 * want.max())
    assert got[20] == got[21] == np.float32(5e-4)  # the peak twice


def test_delay_holds_the_first_rate_and_then_is_the_official_schedule():
    """DeepCluster-v2's epoch that fills the memory comes before SwAV's schedule."""
    fields, batch, per_epoch = OFFICIAL["swav"]
    want = np.load(GOLDEN / "lr_schedules.npz")["swav"]
    got = learning_rates(fields | {"delay_epochs": 2}, len(want) + 2 * per_epoch, batch, per_epoch)
    np.testing.assert_allclose(got[: 2 * per_epoch], want[0], rtol=1e-6)
    np.testing.assert_allclose(got[2 * per_epoch :], want, rtol=1e-5, atol=1e-7 * want.max())


def test_equals_simsiam():
    want = np.load(GOLDEN / "lr_schedules.npz")["simsiam_encoder_predictor"]  # [epochs, 2]
    fields = {"learning_rate": 0.05, "schedule": "cosine_per_epoch"}
    encoder = learning_rates(fields, 20 * 3, per_epoch=3).reshape(20, 3)
    for within in range(3):  # held for the whole epoch
        np.testing.assert_allclose(encoder[:, within], want[:, 0], rtol=1e-5, atol=1e-8)
    predictor = learning_rates(fields | {"schedule": "constant"}, 20)
    np.testing.assert_allclose(predictor, want[:, 1], rtol=1e-6)


def test_equals_byol():
    golden = np.load(GOLDEN / "byol_schedules.npz")
    steps = golden["steps"]  # up to 1100: beyond the end of the run
    fields = {"learning_rate": 0.2, "scaling": "linear", "warmup_fraction": 0.1}
    rate = schedules.make(fields, 512, 50, 1000)
    np.testing.assert_allclose(rate(steps), golden["lr"], rtol=1e-5, atol=1e-7)
    for base, name in ((0.996, "tau_996"), (0.99, "tau_99")):
        tau = schedules.cosine(base, 1.0, 1000)
        np.testing.assert_allclose(tau(steps), golden[name], rtol=2e-7)


def test_cosines_of_mocov3_and_dino():
    golden = np.load(GOLDEN / "lr_schedules.npz")["mocov3_momentum"]  # by fractional epoch
    np.testing.assert_allclose(schedules.cosine(0.99, 1.0, 80)(np.arange(80)), golden, rtol=2e-7)
    golden = np.load(GOLDEN / "dino_cosine_scheduler.npz")
    steps = np.arange(70)
    np.testing.assert_allclose(schedules.cosine(0.996, 1, 70)(steps), golden["momentum"], rtol=2e-7)
    np.testing.assert_allclose(schedules.cosine(0.04, 0.4, 70)(steps), golden["wd"], rtol=1e-6)


def test_scalings():
    for scaling, want in (("none", 0.1), ("linear", 0.4), ("sqrt", 3.2)):
        got = schedules.make({"learning_rate": 0.1, "scaling": scaling}, 1024, 1, 10)(0)
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_warmup_is_a_tenth_of_the_run():
    got = learning_rates({"learning_rate": 1.0, "warmup_fraction": 0.1}, 50)
    np.testing.assert_allclose(got[:6], [0, 0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)
    assert (np.diff(got[5:]) < 0).all()


def test_warmup_before_other_schedules():
    fields = {"learning_rate": 1.0, "warmup_epochs": 1, "factor": 0.5, "milestones": (2, 3)}
    step = learning_rates(fields | {"schedule": "step"}, 8, per_epoch=2)
    np.testing.assert_allclose(step, [0, 0.5, 1, 1, 0.5, 0.5, 0.25, 0.25])
    constant = learning_rates(fields | {"schedule": "constant"}, 4, per_epoch=2)
    np.testing.assert_allclose(constant, [0, 0.5, 1, 1])


def test_a_run_shorter_than_its_warmup_only_rises():
    got = learning_rates({"learning_rate": 1.0, "warmup_epochs": 10}, 5)
    np.testing.assert_allclose(got, np.arange(5) / 70, rtol=1e-6)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"schedule": "cosin"}, "Did you mean cosine"),
        ({"scaling": "lineer"}, "Did you mean linear"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"final": 4.8e-3 * 1e3}, "a share"),
        ({"warmup_epochs": 1, "warmup_fraction": 0.1}, "set one of them"),
        ({"schedule": "step"}, "without milestones"),
    ],
)
def test_user_errors(fields, message):
    with pytest.raises(UserError, match=message):
        schedules.make(fields, 256, 10, 100)

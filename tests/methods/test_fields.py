"""What a method takes: its fields, the arguments of its constructor, and values that cannot be."""

import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import augment, methods, models
from ssl_jax.contract.method import Context, Run
from ssl_jax.errors import UserError
from ssl_jax.methods import METHODS, moco_v1
from ssl_jax.models import heads
from ssl_jax.runs import config as configs

RUN = Run(4000, 128, 31, 620)
CONSTRUCTORS = sorted({*METHODS} - {"moco_v2"})  # whose constructor is MoCo v1's
# What cannot be, by the name of the field; every method that has the field refuses it.
WRONG = {
    "temperature": (0.0, -0.1, float("nan"), float("inf")),
    "loss_scale": (0.0, float("nan")),
    "sigma": (0.0, -1.0),
    "invariance": (-1.0, float("nan")),
    "variance": (-1.0,),
    "covariance": (-1.0,),
    "redundancy": (-0.005,),
    "momentum": (-0.1, 1.1, float("nan")),
    "momentum_final": (-0.1, 1.1),
    "chunk": (-1,),
    "encoder_rows": (-1,),
    "queue": (-128, 100),
    "group": (-1,),
    "shuffle": (0, -1),
    "encoder": ("teacher",),
    "initial_target": ("copy",),
}
HEADS = (
    ({"widths": ()}, "0 widths, "),
    ({"widths": (8, 8, 8, 8)}, "it must have one of each for every layer"),
    ({"norms": "layer"}, "has 'layer'"),  # in every layer
    ({"initial": "zeros"}, "has 'zeros'"),
    ({"activation": "tanh"}, "has 'tanh'"),
    ({"width": 8}, "has no field width. Did you mean widths"),
)
OWN = [name for name in METHODS if methods.FIELDS[name]]


@pytest.mark.parametrize("name", OWN)
def test_a_preset_has_all_fields_and_no_other(name):
    preset, _ = configs.load(f"{name}:digits")
    assert set(preset.method) == set(methods.defaults(name))
    for field in methods.FIELDS[name]:
        assert field.meaning and "\n" not in field.meaning


def test_defaults_are_copies():
    first = methods.defaults("byol")
    first["predictor"]["norms"] = ("plain", "plain")
    again = methods.defaults("byol")
    assert again["predictor"]["norms"] == again["projector"]["norms"] == ("affine", "none")
    assert first["projector"]["norms"] == ("affine", "none")


@pytest.mark.parametrize("name", [name for name in CONSTRUCTORS if name in OWN])
def test_the_constructor_has_the_defaults_of_the_fields_and_documents_each_argument(name):
    constructor = getattr(importlib.import_module(f"ssl_jax.methods.{name}"), name)
    fields = methods.defaults(name)
    text = constructor.__doc__
    for argument, parameter in inspect.signature(constructor).parameters.items():
        field = "encoder" if argument == "probed" else argument
        if parameter.default is not parameter.empty and field in fields:
            assert parameter.default == fields[field], argument
        assert f"{argument}:" in text or f"{argument}," in text, argument


CASES = [
    (name, field, value)
    for name in OWN
    for field, values in WRONG.items()
    if field in methods.defaults(name)
    for value in values
]


@pytest.mark.parametrize(("name", "field", "value"), CASES)
def test_a_value_that_cannot_be_is_refused_before_anything_is_traced(name, field, value):
    config, _ = configs.load(f"{name}:digits")
    config.method[field] = value
    with pytest.raises(UserError, match=f"--config.method.{field}") as error:
        METHODS[name](config, RUN)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [n for n in OWN if "norms" in methods.defaults(n)["projector"]])
@pytest.mark.parametrize(("wrong", "message"), HEADS)
def test_a_head_that_cannot_be_is_refused(name, wrong, message):
    config, _ = configs.load(f"{name}:digits")
    head = config.method.projector
    if "norms" in wrong:
        wrong = {"norms": (wrong["norms"],) * len(head.widths)}
    head.update(wrong)
    with pytest.raises(UserError, match="--config.method.projector") as error:
        METHODS[name](config, RUN)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_constructor_called_from_python_computes_what_a_config_does():
    config, _ = configs.load("moco_v1:digits")
    config.model.width, config.model.blocks = 8, (1,)
    made = moco_v1.make(config, RUN)
    called = moco_v1.moco_v1(
        models.make({"name": "resnet", "blocks": (1,), "width": 8, "stem": "small"}),
        heads.MLP(widths=(128,), norms=("none",), biases=(True,)),
        augment.make("digits", 20, area=(0.4, 1.0)),
        augment.fixed(config.evaluate),
        total_steps=620,
        batch=128,
        queue=1024,
        momentum=0.99,
        momentum_final=0.99,
        group=8,
        shuffle=4,
    )
    zero = jnp.zeros((), jnp.int32)
    ctx = Context(zero, zero, jnp.zeros(()), jax.random.key(0), None)
    image = np.zeros((32, 28, 28, 1), np.uint8)

    def program(method):
        def step(key, image):
            views = method.views(key, {"image": image}, ctx)
            params, state = method.init(key, views)
            return method.loss(params, state, views, ctx)[0]

        return jax.jit(step).lower(jax.random.key(1), image).as_text()

    assert made.block == called.block == 32
    assert program(made) == program(called)

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
    "student_temperature": (0.0, float("nan")),
    "teacher_temperature": (0.0, -1.0),
    "warmup_teacher_temperature": (0.0,),
    "warmup_teacher_epochs": (-1,),
    "centring": ("means",),
    "centre_momentum": (-0.1, 1.1),
    "sinkhorn_iterations": (0,),
    "local_crops": (-1, 2),  # without a view for them
    "form": ("softmx",),
    "bank_momentum": (-0.1, 1.1),
    "negatives": (-1,),
    "masking": ("blocks",),
    "ratio": (0.0, 1.0, float("nan")),
    "padding": (-1,),
    "permutations": (0, 400_000),  # there are 9!
    "permutation_seed": (-1, 2**32),
    "tile": (1, 13),  # a cell has 12 pixels
    "jitter": (-1, 4),
    "epsilon": (0.0, float("nan")),
    "iterations": (-1,),
    "queue_epoch": (-1,),
    "sharpness": (0.0,),
    "tolerance": (0.0, float("nan")),
}
# Those of one method, or within a field.
WRONG_IN = (
    ("swav", "prototypes", 0),
    ("sela_v2", "prototypes", ()),
    ("sela_v2", "prototypes", (200, 0)),
    ("deepcluster_v2", "prototypes", ()),
    ("deepcluster_v2", "prototypes", (200, 0)),
    ("deepcluster_v2", "prototypes", (200, 5_000)),  # an epoch has 3,968 examples
    ("deepcluster_v2", "iterations", 0),
    ("sela_v2", "iterations", 0),
    ("jigsaw", "projector", (128, 0)),
    ("jigsaw", "hidden", (-1,)),
    ("mae", "decoder.width", 30),  # not 4 heads
    ("mae", "decoder.heads", 0),
    ("mae", "decoder.depth", -1),
    ("mae", "decoder.mlp", 0.0),
    ("dino", "projector.out", 0),
    ("dino", "projector.layers", 0),
)
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


@pytest.mark.parametrize(("name", "field"), [("mae", "decoder"), ("dino", "projector")])
def test_a_field_that_a_module_does_not_have_is_named(name, field):
    config, _ = configs.load(f"{name}:digits")
    with config.unlocked():
        config.method[field].hiden = 3
    with pytest.raises(UserError, match=f"--config.method.{field} has no field hiden"):
        METHODS[name](config, RUN)


CASES = [
    (name, field, value)
    for name in OWN
    for field, values in WRONG.items()
    if field in methods.defaults(name)
    for value in values
] + [*WRONG_IN]


@pytest.mark.parametrize(("name", "field", "value"), CASES)
def test_a_value_that_cannot_be_is_refused_before_anything_is_traced(name, field, value):
    config, _ = configs.load(f"{name}:digits")
    config.update_from_flattened_dict({f"method.{field}": value})
    with pytest.raises(UserError, match=f"--config.method.{field}") as error:
        METHODS[name](config, RUN)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", [n for n in OWN if "norms" in methods.defaults(n).get("projector", ())]
)
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

    assert made.block == called.block == 8
    assert program(made) == program(called)

"""Each method's `:digits` config made tiny, for the tests that every method is under."""

from ml_collections import ConfigDict

from ssl_jax import config as configs

# Fields that shrink a method's own parts: name -> {path: value}.
OVERRIDES = {
    "simclr": {"method.projector.widths": (16, 8)},
}


def config(name: str) -> ConfigDict:
    """`configs/<name>.py:digits` with a network of 8 channels, 12 steps of 16 images and SGD."""
    c, _ = configs.load(f"configs/{name}.py:digits")
    with c.unlocked():
        c.batch, c.steps, c.accumulate = 16, 12, 1
        if c.model.name.startswith("resnet"):
            c.model.width, c.model.blocks = 8, (1,)
        else:
            c.model.width, c.model.depth, c.model.heads = 16, 1, 2
        c.optimizer.name, c.optimizer.learning_rate = "sgd", 1e-3
        c.optimizer.momentum, c.optimizer.warmup_epochs = 0.0, 0.0
        for path, value in OVERRIDES[name].items():
            c.update_from_flattened_dict({path: value})
    return c

"""Each method's `:digits` config made tiny, for the tests that every method is under."""

from ml_collections import ConfigDict

from ssl_jax.augment import policies
from ssl_jax.runs import config as configs

# Local BatchNorm and its shuffle in blocks of four rows, a quarter of the batch.
LOCAL = {"method.group": 2, "method.shuffle": 2}
# Fields that shrink a method's own parts: name -> {path: value}.
OVERRIDES = {
    "simclr": {"method.projector.widths": (16, 8)},
    "byol": {"method.projector.widths": (16, 8), "method.predictor.widths": (16, 8)},
    "simsiam": {"method.projector.widths": (16, 16, 8), "method.predictor.widths": (4, 8)},
    # Smaller steps: with 16 images these losses are steep, and rounding would grow tenfold a step.
    "barlow_twins": {
        "method.projector.widths": (16, 16, 8),
        "method.invariance": 0.1,
        "method.redundancy": 5e-4,
    },
    "dcl": {"method.projector.widths": (16, 8), "method.temperature": 0.5},
    "vicreg": {"method.projector.widths": (16, 16, 8)},
    "moco_v1": {"method.projector.widths": (8,), "method.queue": 32, **LOCAL},
    "moco_v2": {"method.projector.widths": (16, 8), "method.queue": 32, **LOCAL},
    "moco_v3": {"method.projector.widths": (16, 8), "method.predictor.widths": (16, 8)},
    "ressl": {"method.projector.widths": (16, 8), "method.queue": 32, **LOCAL},
    "dino": {
        "method.centring": "mean",  # as published
        "method.projector.norm": False,
        "method.projector.out": 32,
        "method.projector.hidden": 16,
        "method.projector.bottleneck": 8,
    },
    "npid": {"method.projector.widths": (8,), "method.chunk": 24},
    "mae": {"method.decoder.width": 8, "method.decoder.depth": 1, "method.decoder.heads": 2},
    "rotation": {"views.image.size": 28},
    "jigsaw": {"method.permutations": 10, "method.hidden": (16,)},
    "swav": {
        "method.projector.widths": (16, 8),
        "method.prototypes": 12,
        "method.queue": 32,
        "method.queue_epoch": 0,
    },
    # Rounding that puts one ReLU on the other side of zero would show as a jump; a low rate keeps
    # it away.
    "deepcluster_v2": {
        "method.projector.widths": (16, 8),
        "method.prototypes": (6, 5, 4),
        "optimizer.learning_rate": 1e-4,
    },
    "sela_v2": {"method.projector.widths": (16, 8), "method.prototypes": (6, 5, 4)},
}


def config(name: str) -> ConfigDict:
    """`configs/<name>.py:digits` with a network of 8 channels, 12 steps of 16 images and SGD.

    Views and crops do not follow the presets, which are tuned: 28 pixels from a quarter of the
    image up, and 2 + 2 crops where the method knows multi-crop.
    """
    c, _ = configs.load(f"configs/{name}.py:digits")
    with c.unlocked():
        c.batch, c.steps, c.accumulate = 16, 12, 1
        if c.model.name.startswith("resnet"):
            c.model.width, c.model.blocks = 8, (1,)
        else:
            c.model.width, c.model.depth, c.model.heads = 16, 1, 2
        c.optimizer.name, c.optimizer.learning_rate = "sgd", 1e-3
        c.optimizer.momentum, c.optimizer.warmup_epochs = 0.0, 0.0
        if name not in ("mae", "rotation", "jigsaw"):
            for view in c.views.values():
                view.size, view.area = 28, (0.25, 1.0)
        if "local_crops" in c.method:
            c.method.local_crops = 2
            c.views.local = ConfigDict(policies.make("digits", 16, area=(0.1, 0.4))._asdict())
        for path, value in OVERRIDES[name].items():
            c.update_from_flattened_dict({path: value})
    return c

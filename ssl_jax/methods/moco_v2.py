"""MoCo v2 (Chen et al. 2020, "Improved Baselines with Momentum Contrastive Learning";
facebookresearch/moco main_moco.py --mlp --moco-t 0.2 --aug-plus --cos).

    one view → encoder → MLP projector = query ────┐
                                                   ├→ InfoNCE: query · key against query · queue
    other view → moving average of both = key ─────┘  then the keys of all devices enter the queue

The algorithm is MoCo v1's, and so are `make` and the constructor, `moco_v1.moco_v1`. What v2
changes is config: a projector of two layers, temperature 0.2, blur in the augmentation, a cosine
learning rate.
"""

from ssl_jax.methods import moco_v1
from ssl_jax.methods.moco_v1 import make

__all__ = ["FIELDS", "make"]

PROJECTOR = {
    "widths": (2048, 128),
    "norms": ("none", "none"),
    "biases": (True, True),
    "initial": "torch",
}
CHANGED = {"temperature": 0.2, "projector": PROJECTOR}
FIELDS = tuple(
    field._replace(default=CHANGED.get(field.name, field.default)) for field in moco_v1.FIELDS
)

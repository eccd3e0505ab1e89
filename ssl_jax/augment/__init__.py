"""On-device augmentation: batched, pure, uint8 in, float32 out, noise by example.

`make` gives a policy by name, `apply` a random view of every image (inside jit, the policy static,
keys [b]), `crops` several of them side by side, `undrawn` and `draw` the same later or some rows at
a time, `evaluate` the deterministic view of probing.
"""

from ssl_jax.augment.crops import Undrawn, crops, draw, undrawn
from ssl_jax.augment.pipeline import Fixed, apply, evaluate, fixed
from ssl_jax.augment.policies import Policy, make

__all__ = [
    "Fixed",
    "Policy",
    "Undrawn",
    "apply",
    "crops",
    "draw",
    "evaluate",
    "fixed",
    "make",
    "undrawn",
]

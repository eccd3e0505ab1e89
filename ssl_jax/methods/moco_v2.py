"""MoCo v2 (Chen et al. 2020, "Improved Baselines with Momentum Contrastive Learning";
facebookresearch/moco main_moco.py --mlp --moco-t 0.2 --aug-plus --cos).

    one view → encoder → MLP projector = query ────┐
                                                   ├→ InfoNCE: query · key against query · queue
    other view → moving average of both = key ─────┘  then the keys of all devices enter the queue

The algorithm is MoCo v1's, and so is the code. What v2 changes is config: a projector of two
layers, temperature 0.2, blur in the augmentation, a cosine learning rate.
"""

from ssl_jax.methods.moco_v1 import make

__all__ = ["make"]

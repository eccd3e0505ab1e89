"""BYOL: the online network predicts what its own slow average makes of the other view.

    python -m ssl_jax.main --config configs/byol.py:imagenet
    python -m ssl_jax.main --config configs/byol.py:cifar10
    python -m ssl_jax.main --config configs/byol.py:digits
    python -m ssl_jax.main --config configs/byol.py:peer

Expected:
    imagenet  linear top-1 74.3 after 1,000 epochs, 72.5 after 300 (cited: tables 1 and 5 of the
              paper; not yet measured here)
    cifar10   linear top-1 92.58 after 1,000 epochs (cited: README of solo-learn; not measured)
    digits    kNN 96.2 ± 0.3, linear 97.2 ± 0.1 (measured, seeds 0–2: docs/results.md)
    peer      kNN 90.3 ± 2.3, linear 94.6 ± 1.1 (measured, seeds 0–2; lightly 1.6.0:
              86.0, 93.5; docs/results.md)

Ablations of the paper (tables 5a, 5b):
    --config.method.momentum=0                the target is the online network: collapses
    --config.method.momentum=1                the target stays as it was drawn
    --config.method.predictor={}              no predictor: collapses
    --config.method.stop_gradient=False       the gradient passes through the target
"""

from ml_collections import ConfigDict

from ssl_jax.runs import config as configs

common = configs.load_module("common")


def imagenet() -> ConfigDict:
    """ResNet-50, 1,000 epochs at batch 4,096: the defaults of the official code (configs/byol.py).

    For 300 epochs it takes learning rate 0.3, weight decay 1e-6 and momentum 0.99; for 100: 0.45,
    1e-6, 0.99; for 40: 0.45, 1e-6, 0.97.

    Where the paper and the code differ, this follows the code: the target's parameters are drawn on
    their own (the authors saw no difference to a copy). The code's online classifier, which the
    encoder does not feel, is left out: probes are a job of their own.
    """
    c = common.imagenet(epochs=1_000.0, batch=4096)
    c.model = common.resnet50(
        zero_init_residual=True,  # Haiku's bottleneck: scale of the last norm starts at 0
        unbiased=False,  # Haiku's running variance
    )
    c.method = common.method("byol")
    c.views.first = common.view("byol_1", 224)
    c.views.second = common.view("byol_2", 224)
    c.optimizer.name = "lars"
    c.optimizer.learning_rate = 0.2
    c.optimizer.scaling = "linear"
    c.optimizer.warmup_epochs = 10.0
    c.optimizer.weight_decay = 1.5e-6
    return c


def cifar10() -> ConfigDict:
    """ResNet-18 with a small stem, 1,000 epochs at batch 256: solo-learn's recipe (there is no
    official one).

    Its heads have a bias in every layer, its target starts as a copy of the online network, and its
    LARS (trust 0.02) never raises the learning rate. Its stem pads by 2 pixels, ours by 1.
    """
    c = common.cifar10(epochs=1_000.0, batch=256)
    c.model = common.resnet18(zero_init_residual=False, unbiased=True)
    c.method = method(momentum=0.99, hidden=4096, width=256)
    c.method.projector.biases = c.method.predictor.biases = (True, True)
    c.method.initial_target = "online"
    c.views.first = common.view("cifar_asymmetric_1", 32)
    c.views.second = common.view("cifar_asymmetric_2", 32)
    c.optimizer.name = "larc_clip"
    c.optimizer.trust_coefficient = 0.02
    c.optimizer.learning_rate = 1.0
    c.optimizer.scaling = "linear"
    c.optimizer.warmup_epochs = 10.0
    c.optimizer.warmup_start = 3e-5
    c.optimizer.weight_decay = 1e-5
    return c


def digits() -> ConfigDict:
    """SimCLR's digits with BYOL: both views by one policy, a momentum for a thousand steps.

    Chosen on a hold-out of train (docs/results.md): a BatchNorm without parameters at the end of
    the projector (the official one has none), which keeps the embeddings from a few directions;
    larger crops than SimCLR's; the momentum.
    """
    c = common.digits(epochs=40.0)
    c.method = method(momentum=0.9, hidden=512, width=128)
    c.method.projector.norms = ("affine", "plain")
    c.views.first = common.view("digits", 20, area=(0.4, 1.0))
    c.views.second = common.view("digits", 20, area=(0.4, 1.0))
    c.optimizer.learning_rate = 3e-3
    return c


def peer() -> ConfigDict:
    """The work of the run of lightly 1.6.0, with its widths and a target that starts as a copy.

    The momentum and the BatchNorm at the end of the projector were chosen on a hold-out of train
    (docs/results.md), as in `digits`; lightly's projector has none there.
    """
    c = common.peer()
    c.method = method(momentum=0.8, hidden=512, width=128)
    c.method.projector.biases = c.method.predictor.biases = (False, True)
    c.method.projector.norms = ("affine", "plain")
    c.method.initial_target = "online"
    c.views.first = common.view("digits", 28)
    c.views.second = common.view("digits", 28)
    return c


def method(momentum: float, hidden: int, width: int) -> ConfigDict:
    """Fields of `config.method`: heads of these widths, begun as PyTorch begins them."""
    c = common.method("byol", momentum=momentum)
    for head in (c.projector, c.predictor):
        head.update(widths=(hidden, width), initial="torch", unbiased=True)
    return c


PRESETS = {"imagenet": imagenet, "cifar10": cifar10, "digits": digits, "peer": peer}


def get_config(preset: str = "imagenet") -> ConfigDict:
    """The config of a preset."""
    return PRESETS[preset]()

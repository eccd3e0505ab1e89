"""VICReg: two views alike, every feature spread out, no two features correlated.

    python -m ssl_jax.main --config configs/vicreg.py:imagenet
    python -m ssl_jax.main --config configs/vicreg.py:cifar10
    python -m ssl_jax.main --config configs/vicreg.py:digits
    python -m ssl_jax.main --config configs/vicreg.py:peer

Expected:
    imagenet  linear top-1 73.2 after 1,000 epochs (cited: README of facebookresearch/vicreg; not
              yet measured here)
    cifar10   linear top-1 92.07 after 1,000 epochs (cited: README of vturrisi/solo-learn; not
              measured)
    digits    kNN 97.3 ± 0.3, linear 98.0 ± 0.2 (measured, seeds 0–2: docs/results.md)
    peer      kNN 95.9 ± 0.1, linear 97.0 ± 0.4 (measured, seeds 0–2; lightly 1.6.0:
              96.2, 97.3; docs/results.md)
"""

from ml_collections import ConfigDict

from ssl_jax.runs import config as configs

common = configs.load_module("common")


def imagenet() -> ConfigDict:
    """ResNet-50, 1,000 epochs at batch 2,048: the multi-node command in the official README.

    Where the paper and the code differ, this follows the code: invariance averaged over features,
    variance averaged over the two views (both: see losses/redundancy.py), and Barlow Twins' pair of
    views (paper: one distribution for both, `policies.make("vicreg", 224)`).
    """
    c = common.imagenet(epochs=1_000.0, batch=2048)
    c.model = common.resnet50(zero_init_residual=True)
    c.method = common.method("vicreg")
    c.views.first = common.view("vicreg_1", 224)
    c.views.second = common.view("vicreg_2", 224)
    c.optimizer.name = "lars"
    c.optimizer.learning_rate = 0.2
    c.optimizer.scaling = "linear"
    c.optimizer.warmup_epochs = 10.0
    c.optimizer.final = 0.001
    c.optimizer.weight_decay = 1e-6
    return c


def cifar10() -> ConfigDict:
    """ResNet-18 with a small stem, 1,000 epochs at batch 256: solo-learn's vicreg.yaml.

    Its variance term sums the two views with a weight of 25, which is 50 on their mean, and its
    last linear layer has a bias. Its first convolution is padded by 2 pixels, ours by 1.
    """
    c = common.cifar10(epochs=1_000.0, batch=256)
    c.model = common.resnet18(zero_init_residual=False)
    c.method = common.method("vicreg", variance=50.0)
    c.method.projector.update(widths=(2048, 2048, 2048), biases=(True, True, True))
    c.views.first = common.view("cifar_vicreg", 32)
    c.views.second = common.view("cifar_vicreg", 32)
    c.optimizer.name = "larc_clip"
    c.optimizer.trust_coefficient = 0.02
    c.optimizer.learning_rate = 0.3
    c.optimizer.scaling = "linear"
    c.optimizer.warmup_epochs = 10.0
    c.optimizer.warmup_start = 1e-4  # 3e-5
    c.optimizer.weight_decay = 1e-4
    return c


def digits() -> ConfigDict:
    """SimCLR's data, encoder, optimizer and views on digits, with this loss and head."""
    c = common.digits()
    c.method = small()
    c.views.first = common.view("digits", 20, area=(0.25, 1.0))
    c.views.second = common.view("digits", 20, area=(0.25, 1.0))
    return c


def peer() -> ConfigDict:
    """The setting in which other libraries were measured: 300 steps on digits."""
    c = common.peer()
    c.method = small()
    c.views.first = common.view("digits", 28)
    c.views.second = common.view("digits", 28)
    return c


def small() -> ConfigDict:
    """Fields of `config.method`: a head of 512 dimensions."""
    c = common.method("vicreg")
    c.projector.widths = (512, 512, 512)
    return c


PRESETS = {"imagenet": imagenet, "cifar10": cifar10, "digits": digits, "peer": peer}


def get_config(preset: str = "imagenet") -> ConfigDict:
    """The config of a preset."""
    return PRESETS[preset]()

"""The cases of benchmarks.step: presets as both sides can have them.

python -m benchmarks.step_cases --cases resnet18 [--batch 128] [--tiny]    # their configs, JSON
"""

import argparse
import json
import os
import subprocess
import sys
from typing import Any

from benchmarks import harness

ON = {
    "cpu": ("vit_tiny", "resnet18"),
    "gpu": ("simclr_resnet50", "moco_v2_resnet50", "dino_vit_s16", "mae_vit_b16", "resnet18_32px"),
}


def config(case: str, batch: int | None, tiny: bool):
    """The config of a case, from the presets in configs/.

    Args:
      case: of ON.
      batch: images of a step; None: that of the case.
      tiny: sizes at which any machine runs the case in seconds. Of no use for timing.

    Returns:
      ConfigDict.
    """
    from ml_collections import ConfigDict

    from ssl_jax.augment import policies
    from ssl_jax.optim import optimizers
    from ssl_jax.runs import config as configs

    # What kornia draws: torchvision's colours and boxes, bilinear without antialias.
    kornia = {"box": "torchvision", "interpolation": "bilinear", "antialias": False}
    kornia["semantics"] = "torchvision"

    presets = {
        "vit_tiny": "simclr.py:cifar10",
        "resnet18": "simclr.py:cifar10",
        "resnet18_32px": "simclr.py:cifar10",
        "simclr_resnet50": "simclr.py:imagenet",
        "moco_v2_resnet50": "moco_v2.py:imagenet",
        "dino_vit_s16": "dino.py:imagenet",
        "mae_vit_b16": "mae.py:imagenet",
    }
    batches = {"vit_tiny": 128, "resnet18": 128, "resnet18_32px": 1024, "dino_vit_s16": 128}
    c, _ = configs.load(f"configs/{presets[case]}")
    c.batch = batch or (8 if tiny else batches.get(case, 256))
    c.data.source, c.data.examples, c.data.classes = "synthetic", 100 * c.batch, 0
    c.evaluate.split = "holdout"
    c.model.dtype = "bfloat16" if case in ON["gpu"] else "float32"
    for name, view in c.views.items():
        p = view.to_dict() | kornia
        c.views[name] = ConfigDict(policies.make("none", **p)._asdict())

    # torch has no LARS: the SGD that its users take. All else is the preset's.
    momentum = {"name": "sgd", "learning_rate": 0.03, "weight_decay": 1e-4}
    adam = {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-2}
    if c.method.name == "simclr":
        c.optimizer = optimizers.defaults()
        c.optimizer.update(adam if case == "vit_tiny" else momentum)
    if case == "vit_tiny":
        c.model = ConfigDict({"name": "vit_tiny", "depth": 6, "size": 32, "patch": 4})
        c.model.update({"positions": "learned", "initial": "dino", "dtype": "float32"})
    if c.method.name == "moco_v2":  # BatchNorm over the whole batch, as the peer on one device
        c.method.group, c.method.shuffle = 0, 1
    if c.method.name == "dino":  # the last layer learns from the first step on
        c.optimizer.groups = ConfigDict()
    if tiny:
        c.data.size = min(c.data.size, 64)
        for view in c.views.values():
            view.size = 16 if view.size < 200 else 32
            view.blur_radius = min(view.blur_radius, 3)
        if c.model.name.startswith("vit"):
            c.model.update({"width": 24, "depth": 2, "heads": 2, "size": 32, "patch": 8})
        else:
            c.model.width = 8
        if c.method.name == "moco_v2":
            c.method.queue = 64
        if c.method.name == "mae":
            c.method.decoder = ConfigDict({"width": 16, "depth": 1, "heads": 2, "mlp": 4.0})
        if c.method.name == "dino":
            c.method.projector.out, c.method.projector.hidden = 128, 32
    return c


def describe(cases: list[str], batch: int | None, tiny: bool) -> dict[str, str]:
    """JSON of the config of every case, by a process of its own: this one stays without JAX."""
    command = [sys.executable, "-m", "benchmarks.step_cases", "--cases", *cases]
    command += ["--batch", str(batch)] if batch else []
    command += ["--tiny"] if tiny else []
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return dict(zip(cases, done.stdout.splitlines(), strict=True))


def flags(doc: str, rounds: int | None = None) -> argparse.ArgumentParser:
    """The flags of all benchmarks of a step."""
    made = harness.parser(doc, rounds)
    made.add_argument("--device", choices=ON, default="cpu")
    made.add_argument("--cases", nargs="+", choices=ON["cpu"] + ON["gpu"], help="default: all")
    made.add_argument("--batch", type=int, help="images of a step, instead of the case's")
    made.add_argument("--limit", type=float, default=3600, help="seconds for a measurement")
    made.add_argument("--measure", action="store_true", help="one config, in this process")
    return made


def read() -> Any:
    """The config whose JSON comes in."""
    from ssl_jax.runs import config as configs

    return configs.from_json(sys.stdin.read())


def main() -> None:
    """Prints a line for each case."""
    from ssl_jax.runs import config as configs

    a = harness.parse(flags(__doc__))
    for case in a.cases or ON[a.device]:
        print(json.dumps(json.loads(configs.to_json(config(case, a.batch, a.tiny)))))


if __name__ == "__main__":
    main()

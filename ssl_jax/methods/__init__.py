"""The methods by name.

Each is one file: FIELDS of its config, `make(config, run) -> Method` which reads them, and under it
a constructor with keyword arguments of the method's own name.
"""

import copy
from typing import Any

from ssl_jax.methods import (
    barlow_twins,
    byol,
    dcl,
    deepcluster_v2,
    dino,
    jigsaw,
    mae,
    moco_v1,
    moco_v2,
    moco_v3,
    npid,
    ressl,
    rotation,
    sela_v2,
    simclr,
    simsiam,
    swav,
    vicreg,
)

MODULES = (
    simclr,
    byol,
    simsiam,
    barlow_twins,
    dcl,
    vicreg,
    moco_v1,
    moco_v2,
    moco_v3,
    ressl,
    dino,
    npid,
    mae,
    rotation,
    jigsaw,
    deepcluster_v2,
    sela_v2,
    swav,
)
METHODS = {module.__name__.rpartition(".")[2]: module.make for module in MODULES}
FIELDS = {module.__name__.rpartition(".")[2]: module.FIELDS for module in MODULES}


def defaults(name: str) -> dict[str, Any]:
    """`config.method` of a method with the default of every field.

    Raises:
      KeyError: no such method.
    """
    # Copies: two heads of one default can then be changed apart, and no change reaches FIELDS.
    return {"name": name, **{field.name: copy.deepcopy(field.default) for field in FIELDS[name]}}

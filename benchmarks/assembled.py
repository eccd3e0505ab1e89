"""Steps of runs without the runs: on a batch that is there, or compiled and never executed."""

from collections.abc import Mapping
from typing import Any


def fixed(c: Any, processes: int = 1, process: int = 0):
    """A run's step with what it works on.

    Args:
      c: config.
      processes: that share the batch.
      process: number of this one.

    Returns:
      (ssl_jax.train.experiment.Experiment, state, batch): the first images, on the devices.
    """
    import jax
    import numpy as np

    from ssl_jax.devices import layout
    from ssl_jax.processes import host
    from ssl_jax.train import experiment

    e = experiment.assemble(c, host.Cluster(processes, process, processes), None)
    state = e.create(jax.random.key(c.seed))
    here = c.batch // processes
    rows = e.train.read(np.arange(here) + process * here)
    rows = {k: x.reshape(c.accumulate, -1, *x.shape[1:]) for k, x in rows.items()}
    return e, state, layout.put_batch(rows, e.mesh, c.parallel)


def preset(
    name: str, preset: str, devices: int, mode: str, fields: Mapping[str, Any] | None = None
):
    """The experiment of a preset on noise, as many images as ImageNet has, without data on disk.

    Args:
      name: of the method.
      preset: of its config.
      devices: CPU devices to make.
      mode: of mapping.MODES.
      fields: dotted names of what is otherwise in the config -> values.

    Returns:
      Experiment; its batch is a multiple of what the devices can share.
    """
    from ssl_jax.contract.method import Run
    from ssl_jax.methods import METHODS
    from ssl_jax.processes import host
    from ssl_jax.runs import config as configs
    from ssl_jax.train import experiment

    c, _ = configs.load(f"configs/{name}.py:{preset}")
    c.data.source, c.data.classes, c.evaluate.split = "synthetic", 0, "holdout"
    c.update_from_flattened_dict(fields or {})
    c.data.examples = 1_281_167 if preset == "imagenet" else max(4_000, c.batch)
    c.cpu_devices, c.parallel, c.compile_cache = devices, mode, ""
    facts = Run(c.data.examples, c.batch, c.data.examples // c.batch, 100)
    shared = devices * METHODS[name](c, facts).block * c.accumulate
    c.batch = -(-c.batch // shared) * shared
    return experiment.assemble(c, host.Cluster(1, 0, 1), None)


def compiled(e: Any):
    """The compiled step of an experiment, from shapes alone."""
    import jax

    from ssl_jax.devices import layout
    from ssl_jax.train import experiment

    c, b = e.config, e.config.batch // e.config.accumulate
    rows = {"image": ((b, *e.train.fields["image"].shape), "uint8"), "index": ((b,), "int32")}
    rows["label"] = rows["index"]
    batch = {
        k: jax.ShapeDtypeStruct((c.accumulate, *shape), dtype) for k, (shape, dtype) in rows.items()
    }
    lowered = e.step.lower(experiment.like(e), layout.like_batch(batch, e.mesh, c.parallel))
    # On CPU, no time for code that never runs: buffers and what is sent are settled before.
    quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return lowered.compile(quick if jax.default_backend() == "cpu" else None)


def size(tree: Any) -> int:
    """Bytes of all arrays of a tree, or of what its shapes stand for, random keys among them."""
    import jax

    def plain(x):
        key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        return jax.eval_shape(jax.random.key_data, x) if key else x

    return sum(x.size * x.dtype.itemsize for x in map(plain, jax.tree.leaves(tree)))

"""A page about one run, or several side by side: curves, features, neighbours, config.

    python -m ssl_jax.main --config configs/report.py --config.runs=runs/quickstart
    python -m ssl_jax.main --config configs/report.py --config.runs=runs/a,runs/b --workdir=runs/ab

Expected: RUN/report/index.html, one file that opens from disk. Of several runs it is
runs/report/index.html, or in the --workdir. (A run writes its own page when it ends.)
"""

from ml_collections import ConfigDict, config_dict

from ssl_jax.evaluate import probing


def get_config() -> ConfigDict:
    """Features of at most 10,000 images to learn from and 2,000 to be judged on."""
    c = probing.defaults("report")
    del c.checkpoint, c.dtype  # what the run computed in
    c.runs = config_dict.placeholder(str)  # workdir of a run, or several: RUN,RUN,RUN
    c.train_examples = 10_000
    c.test_examples = 2_000
    return c

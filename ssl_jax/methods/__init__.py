"""The methods by name. Each is one file with one constructor: make(config, run) -> Method."""

from ssl_jax.methods import simclr

METHODS = {
    "simclr": simclr.make,
}

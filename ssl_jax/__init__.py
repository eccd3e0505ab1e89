"""Self-supervised learning of image representations, in JAX."""

__version__ = "0.2.0"

"""Metadata stand in setup.cfg. Here is what it cannot say: where the packages lie."""

from setuptools import find_packages, setup

# The configs stay at the top of the repository, where people look for them.
setup(
    packages=[*find_packages(include=["ssl_jax", "ssl_jax.*"]), "ssl_jax.configs"],
    package_dir={"ssl_jax.configs": "configs"},
)

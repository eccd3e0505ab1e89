"""Every test sees four CPU devices and a compilation cache that lives on between runs."""

import os
import pathlib

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update(
    "jax_compilation_cache_dir",
    os.environ.get("SSL_JAX_TEST_CACHE", str(pathlib.Path(__file__).parents[1] / ".cache" / "xla")),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture(scope="session", autouse=True)
def data_home(tmp_path_factory):
    """TFDS's folder: the embedded digits are prepared once for the session, outside the home."""
    os.environ["TFDS_DATA_DIR"] = str(tmp_path_factory.mktemp("tfds"))

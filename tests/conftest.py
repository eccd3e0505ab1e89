"""Every test sees four CPU devices and a compilation cache that lives on between runs."""

import gc
import os
import pathlib
import subprocess
import sys

# Tiny networks compile for seconds and run for milliseconds: without LLVM's passes and the newer
# fusions the suite is quicker by a third. XLA_FLAGS= (empty) tests what users compile.
# Four devices on a busy machine can wait for each other longer than the 40 s after which XLA aborts
# the process.
FLAGS = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
)
# Reads XLA_FLAGS, as the first use of a device does, in half a second.
READ = """
try:
    from jaxlib import _jax
    _jax.CompileOptions().executable_build_options.debug_options
except (ImportError, AttributeError):
    import jax
    jax.devices()
"""


def known(flags):
    """Those of some XLA flags that this version has: it aborts a process that sets another one."""
    done = subprocess.run(
        [sys.executable, "-c", READ],
        env={**os.environ, "XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"},
        stderr=subprocess.PIPE,
        text=True,
    )
    refused = [line for line in done.stderr.splitlines() if "Unknown flag" in line]
    return [flag for flag in flags if not any(flag in line for line in refused)]


if "XLA_FLAGS" not in os.environ:  # the workers of pytest-xdist inherit it
    os.environ["XLA_FLAGS"] = " ".join(known(FLAGS))

# SSL_JAX_TEST_ISA=AVX2, SSE4_2 … takes no newer instructions, as on another processor; that needs a
# compilation cache of its own (SSL_JAX_TEST_CACHE).
if isa := os.environ.get("SSL_JAX_TEST_ISA"):
    os.environ["XLA_FLAGS"] += f" --xla_cpu_max_isa={isa}"

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update(
    "jax_compilation_cache_dir",
    os.environ.get("SSL_JAX_TEST_CACHE", str(pathlib.Path(__file__).parents[1] / ".cache" / "xla")),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
# For processes that tests start, see the one file there.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(pathlib.Path(__file__).parent / "children"), *filter(None, [os.environ.get("PYTHONPATH")])]
)
# Tracing makes objects by the ten thousand, hardly any of them garbage: looking for it less often
# takes a tenth off.
gc.set_threshold(50_000, 10, 10)

# What takes longest begins first, so that no worker is left alone with it at the end.
FIRST = ("jobs", "launch", "checkpoints", "processes", "evaluate", "methods", "models", "train")


def pytest_collection_modifyitems(items):
    """Puts the files of the folders in FIRST, in that order, before the others."""
    here = pathlib.Path(__file__).parent

    def place(item):
        folder = item.path.relative_to(here).parts[0]
        return FIRST.index(folder) if folder in FIRST else len(FIRST)

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def data_home(tmp_path_factory):
    """TFDS's folder: the embedded digits are prepared once for the session, outside the home."""
    os.environ["TFDS_DATA_DIR"] = str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="module", autouse=True)
def released(request):
    """A file's programs go with it: a worker that kept them all would grow by gigabytes."""
    yield
    for value in vars(request.module).values():
        if hasattr(value, "cache_clear"):
            value.cache_clear()
    jax.clear_caches()
    gc.collect()

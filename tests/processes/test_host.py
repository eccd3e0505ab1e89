"""CPU devices: one a core, as far as the batch divides into whole blocks."""

import os
import platform
import subprocess
import sys

import pytest

from ssl_jax.processes import host


@pytest.mark.parametrize(
    ("cores", "rows", "block", "cluster", "devices"),
    [
        (2, 256, 1, (1, 0, 1), 2),
        (2, 255, 1, (1, 0, 1), 1),  # 255 does not split in two
        (6, 256, 1, (1, 0, 1), 4),  # neither in six nor in five
        (64, 256, 1, (1, 0, 1), 8),  # never more than eight
        (8, 256, 64, (1, 0, 1), 4),  # four whole blocks of 64 rows
        (8, 256, 1, (2, 1, 2), 4),  # two processes share the cores
        (8, 12, 1, (2, 0, 1), 6),  # each on its own host: 12 rows on 2 × 6 devices
        (8, 100, 64, (1, 0, 1), 1),
    ],
)
def test_the_largest_number_that_divides(monkeypatch, cores, rows, block, cluster, devices):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert host.cpu_devices(rows, block, host.Cluster(*cluster)) == devices


HEAP = """
import ctypes
from ssl_jax.processes import host

libc = ctypes.CDLL("libc.so.6")
for function in (libc.sbrk, libc.malloc):
    function.restype = ctypes.c_void_p
libc.malloc.argtypes = (ctypes.c_size_t,)
libc.free.argtypes = (ctypes.c_void_p,)
kept = host.keep_memory_pages()
block = libc.malloc(5 << 29)  # 2.5 GiB, of which no page is touched
before = libc.sbrk(0)
libc.free(block)
print(kept, before - libc.sbrk(0) < 1 << 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
@pytest.mark.parametrize(
    ("tunables", "said"), [("", "True True"), ("glibc.malloc.hugetlb=1", "False ")]
)
def test_malloc_gives_no_page_back_unless_the_user_has_set_it_up(tunables, said):
    done = subprocess.run(
        [sys.executable, "-c", HEAP],
        env={**os.environ, "GLIBC_TUNABLES": tunables},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(said), done

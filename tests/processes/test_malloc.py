"""malloc in huge pages: what is asked for; the program begins again in the same process."""

import os
import subprocess
import sys

import pytest

from ssl_jax.processes import malloc

MADVISE = "always [madvise] never\n"


@pytest.mark.parametrize(
    ("given", "glibc", "huge_pages", "value"),
    [
        ("", "glibc 2.36", MADVISE, "glibc.malloc.hugetlb=1"),
        ("", "glibc 2.35", "[always] madvise never", "glibc.malloc.hugetlb=1"),
        ("a.b=1", "glibc 2.40", MADVISE, "a.b=1:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.tcache_count=0", "glibc 2.36", MADVISE, None),  # the user's word
        ("", "glibc 2.31", MADVISE, None),  # knows no such tunable
        ("", "", MADVISE, None),  # musl
        ("", "glibc 2.36", "always madvise [never]", None),
        ("", "glibc 2.36", "", None),
    ],
)
def test_what_is_asked_for(given, glibc, huge_pages, value):
    assert malloc.tunables({"GLIBC_TUNABLES": given}, glibc, huge_pages) == value


def wanted():
    try:
        return malloc.tunables({}, os.confstr("CS_GNU_LIBC_VERSION"), malloc.HUGE_PAGES.read_text())
    except (OSError, ValueError):
        return None


@pytest.mark.skipif(wanted() is None, reason="no huge pages, or another C library")
def test_the_program_begins_once_more_in_the_same_process():
    code = "import os, sys; from ssl_jax.processes import malloc; "
    code += "print(os.getpid(), sys.argv, flush=True); "
    code += "malloc.start_in_huge_pages(); print(os.environ['GLIBC_TUNABLES'])"
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    with subprocess.Popen(
        [sys.executable, "-c", code, "--a flag", "-x"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        out = process.communicate()[0].splitlines()
    said = f"{process.pid} ['-c', '--a flag', '-x']"
    assert out == [said, said, "glibc.malloc.hugetlb=1"]


@pytest.mark.skipif(wanted() is None, reason="no huge pages, or another C library")
def test_the_command_line_begins_in_huge_pages_before_jax_is_imported():
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ssl_jax.main", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    imported = [line.split("|")[-1].strip() for line in done.stderr.splitlines()]
    assert imported.count("ssl_jax.processes.malloc") == 2 and imported.count("jax") == 1
    assert done.stdout.count("usage: ") == 1

"""glibc's malloc in huge pages, which only the environment of a process can ask for.

A step asks for its memory anew each time and gives it back at its end. In pages of 4 KiB that is
hundreds of thousands of page faults a step; a heap that keeps its pages (`host.keep_memory_pages`)
has none, but tears, and grows to several times what a step uses. In huge pages the faults cost next
to nothing and nothing has to be kept: less time and half the memory (docs/performance.md).

Imports nothing but the standard library: it runs before all else.
"""

import os
import pathlib
import sys

TUNABLE = "glibc.malloc.hugetlb=1"  # large blocks are madvised to be in huge pages; glibc 2.35
HUGE_PAGES = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def tunables(environment: dict[str, str], glibc: str, huge_pages: str) -> str | None:
    """What GLIBC_TUNABLES should be.

    Args:
      environment: of this process.
      glibc: 'glibc 2.36', say; '' for another C library.
      huge_pages: what the kernel says, 'always [madvise] never'; '' where it has none.

    Returns:
      its value, or None: it stays, because the user has set malloc up, or it would change nothing.
    """
    given = environment.get("GLIBC_TUNABLES", "")
    if "glibc.malloc." in given or not huge_pages or "[never]" in huge_pages:
        return None
    if not glibc.startswith("glibc ") or tuple(map(int, glibc[6:].split(".")[:2])) < (2, 35):
        return None
    return ":".join(filter(None, (given, TUNABLE)))


def start_in_huge_pages() -> None:
    """Starts this program once more in the same process, with malloc in huge pages.

    Process id, arguments, open files and working directory stay. Does nothing where it would change
    nothing, or cannot: then `host.keep_memory_pages` is what is left.
    """
    try:
        value = tunables(
            dict(os.environ), os.confstr("CS_GNU_LIBC_VERSION"), HUGE_PAGES.read_text()
        )
        if value is not None and sys.executable and sys.orig_argv:
            environment = {**os.environ, "GLIBC_TUNABLES": value}
            os.execve(sys.executable, sys.orig_argv, environment)
    except (AttributeError, OSError, ValueError):  # no Linux, no glibc, no such file
        return

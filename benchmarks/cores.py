"""Runs that share the cores of a machine, each with its own."""

import concurrent.futures
import os
import queue


def pool(at_once: int) -> concurrent.futures.ThreadPoolExecutor:
    """Threads whose child processes keep to a share of the cores.

    Args:
      at_once: threads, and shares that this process's cores are dealt into, one by one.
    """
    cores, shares = sorted(os.sched_getaffinity(0)), queue.Queue()
    for i in range(at_once):
        shares.put(cores[i::at_once])

    def take_cores():
        os.sched_setaffinity(0, shares.get())  # of this thread; its processes inherit them

    return concurrent.futures.ThreadPoolExecutor(at_once, initializer=take_cores)

"""Asked to stop (SIGTERM, Ctrl-C), every process of a run leaves after the same step.

One process notes the signal and leaves after the step that runs. Several must agree: a process
that left alone would keep the others waiting in a collective for ever. The signal may reach one
of them or all, and each may have handed its devices other steps than the others have.

JAX has `multihost_utils.reached_preemption_sync_point`, which agrees in the same way. It looks
for the signal once a second, takes SIGTERM alone, and a second SIGTERM, or one that comes while
a run is compiling, is swallowed. So the agreement here is made with the same means, the key-value
store and the barrier of JAX's coordination service, and a step costs nothing:

1. The process that was asked, at step s, writes "stop after step s + 1 + IN_FLIGHT" and waits.
2. A thread of every process looks for that key a few times a second, keeps the step, and then
   meets the others at a barrier. There the first process is let go, and takes step s + 1.
3. The loop waits for step d − IN_FLIGHT before it is done with step d, and no step ends on one
   process before all have begun it. So who is done with step s + 1 + IN_FLIGHT knows the key.

Where a call of the compiled program makes k steps, all of this is true of calls: the loop asks
after each of them, and the step to stop after is s + k (1 + IN_FLIGHT).
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax

from ssl_jax.processes import host
from ssl_jax.train.loop import IN_FLIGHT

EXIT_STOPPED = 143  # asked to stop and saved: started again, the run continues. 128 + SIGTERM

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LOOK_EVERY = 0.2  # seconds
_MEET_MS = 600_000  # the others may be in a monitor, a save, a slow read


@contextlib.contextmanager
def requested(
    cluster: host.Cluster, name: str, at_once: int = 1
) -> Iterator[Callable[[int], bool]]:
    """Within it, SIGTERM and Ctrl-C are noted instead of obeyed; a second one is obeyed at once.

    Args:
      cluster: the processes of the run.
      name: of the training, the same on every process and another for the next one.
      at_once: steps of a call, as for `loop.train`.

    Yields:
      stop(done) -> bool, to be asked after every call but the last: whether to leave after it.
      True at the same step on every process.
    """
    with noted() as asked:
        if cluster.processes == 1:
            yield lambda done: asked.is_set()
        else:
            with agreement(asked, name, at_once) as stop:
                yield stop


@contextlib.contextmanager
def noted() -> Iterator[threading.Event]:
    """Yields the event that the first signal sets; the handlers from before see the second."""
    asked = threading.Event()

    def note(number, frame):
        asked.set()
        put_back()

    # None: a handler that is not Python's and cannot be put back.
    before = {s: signal.signal(s, note) or signal.SIG_DFL for s in SIGNALS}

    def put_back():
        for s, handler in before.items():
            signal.signal(s, handler)

    try:
        yield asked
    finally:
        put_back()


@contextlib.contextmanager
def agreement(
    asked: threading.Event, name: str, at_once: int = 1
) -> Iterator[Callable[[int], bool]]:
    """The step that all processes leave after; see the top of this file.

    Args:
      asked: set where this process was asked to stop.
      name, at_once: as for `requested`.

    Yields:
      stop(done) -> bool, as for `requested`.
    """
    from jax._src import distributed  # the store has no public name; Orbax takes it from here too

    client, key = distributed.global_state.client, f"ssl_jax/stop/{name}"
    last: list[int] = []  # the step to leave after, once it is known here
    met, left = threading.Event(), threading.Event()

    def look():
        while not left.wait(_LOOK_EVERY):
            try:
                last.append(int(client.key_value_try_get(key)))
            except jax.errors.JaxRuntimeError:  # not found: nobody was asked
                continue
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # one is gone; so is the run
                client.wait_at_barrier(key, _MEET_MS)
            met.set()
            return

    def stop(done):
        if asked.is_set() and not met.is_set():
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # another was asked before
                client.key_value_set(key, str(done + at_once * (1 + IN_FLIGHT)))
            met.wait()
        return bool(last) and done >= last[0]

    thread = threading.Thread(target=look, name="ssl_jax_stop", daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        left.set()
        thread.join(2 * _LOOK_EVERY)

"""Joining the processes that `find.find` found, and ending without keeping them waiting.

A coordinator that does not answer ends the process with a message.
"""

import errno
import gc
import os
import signal
import socket
import sys
import threading
import traceback

from ssl_jax.processes.find import Found, is_local
from ssl_jax.processes.host import Cluster

JOIN_SECONDS = 300  # an image may still be pulled on the last host
EXIT_UNJOINED = 75  # EX_TEMPFAIL: the others did not come in time; started again it may work


def join(found: Found, timeout: int = JOIN_SECONDS) -> Cluster:
    """Joins the processes of the run, before anything else uses JAX; process 0 says so in one line.

    Args:
      found: from `find.find`.
      timeout: seconds to wait for the coordinator and for the other processes.

    Returns:
      the processes.

    Raises:
      SystemExit: EXIT_UNJOINED, after one line: they did not come in time, or the port is taken.
        (Where JAX would abort the process, it ends here without raising.)
    """
    if found.kind == "alone":
        if found.name:
            print(found.name, flush=True)
        return Cluster(1, 0, 1)
    import jax
    from jax._src import distributed  # the process's number, without starting the backend

    # A coordinator that does not answer makes XLA abort the whole process: be earlier.
    watch = threading.Timer(timeout, _give_up, (found, timeout))
    watch.daemon = True
    watch.start()
    known = {}
    if found.kind != "tpu":
        known = {
            "coordinator_address": found.coordinator,
            "num_processes": found.processes,
            "process_id": found.process,
            "local_device_ids": found.gpus,
            "cluster_detection_method": "deactivate",
        }
        bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS")
        if not bind:  # not on every interface where it need not be
            local = is_local(found.coordinator)
            bind = found.coordinator if local else "[::]:" + found.coordinator.rpartition(":")[2]
        known["coordinator_bind_address"] = bind
    try:
        if found.process == 0:
            _listen_once(bind)  # XLA can crash where it cannot listen
        jax.distributed.initialize(**known, initialization_timeout=timeout + 60)
    except (RuntimeError, ValueError, OSError) as error:
        print(f"error: {_why(found, error)}", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_UNJOINED) from None
    finally:
        watch.cancel()
    # JAX's handler would swallow SIGTERM, and after a KeyboardInterrupt a process waits minutes for
    # the others before it ends. train/stopping.py has handlers of its own while a run trains.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    state = distributed.global_state
    processes, process = state.num_processes, state.process_id
    if process == 0:
        several = f"{processes} process{'es' if processes > 1 else ''}"
        of = f" of {found.name}" if found.name else ""
        print(f"joined {several}{of}; coordinator {state.coordinator_address}", flush=True)
    return Cluster(processes, process, 1 if found.bound else found.here)


def _listen_once(address: str) -> None:
    """Raises OSError where no server could be started at 'host:port'."""
    host, _, port = address.rpartition(":")
    found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    errors = []
    for family, kind, protocol, _, place in found:
        try:
            with socket.socket(family, kind, protocol) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(place)
                trial.listen()
        except OSError as error:
            errors.append(error)
    if len(errors) == len(found) and not (host == "[::]" and _without_ipv6(errors)):
        raise errors[0]


def _without_ipv6(errors: list[OSError]) -> bool:
    """Whether they say that this host has no IPv6: then gRPC listens on IPv4."""
    return all(e.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL) for e in errors)


def _why(found: Found, error: Exception) -> str:
    if found.kind == "tpu":
        text = " ".join(str(error).split())
        return f"could not join the TPU pod: {text} (TPU_WORKER_HOSTNAMES=localhost runs alone)"
    if found.process == 0:
        text = getattr(error, "strerror", None) or " ".join(str(error).split())
        return f"could not listen at {found.coordinator}: {text}; another port, or another host?"
    return f"could not join {found.coordinator}: {' '.join(str(error).split())}"


def _give_up(found: Found, timeout: int) -> None:
    """Ends the process, which hangs in C++, with one line."""
    print(f"error: waited {timeout} s {missing(found)}", file=sys.stderr, flush=True)
    os._exit(EXIT_UNJOINED)


def missing(found: Found) -> str:
    """What a process that has waited for the others in vain can say about it."""
    if found.kind == "tpu":
        return "for the other workers of the TPU pod; start the program on all of them"
    everyone = f"for all {found.processes} processes"
    if found.process == 0:
        return f"{everyone} at {found.coordinator}; start the others, or see why they ended"
    host, _, port = found.coordinator.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
    except OSError as error:
        proxy = [k for k in ("http_proxy", "https_proxy", "HTTPS_PROXY") if os.environ.get(k)]
        hint = f" ({proxy[0]} is set: no_proxy must name that host)" if proxy else ""
        text = error.strerror or str(error)
        return f"for process 0 at {found.coordinator}: {text}; is it running there?{hint}"
    return f"{everyone}: {found.coordinator} answers, the others have not come"


def leave(run, argv: list[str]) -> None:
    """Runs `run(argv) -> exit code` and ends the process with its code.

    A process that fails must not wait for the others, as JAX does when Python ends: they wait for
    it in a collective. Nor one that did not join: what XLA has half started can crash at the end.
    """
    try:
        code = run(argv)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    import jax

    failed = code not in (0, 143) and jax.distributed.is_initialized()
    if not failed and code != EXIT_UNJOINED:
        gc.freeze()  # collecting all that JAX and Python hold would be most of the way out
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

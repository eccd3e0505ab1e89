"""How Orbax is used here: each process on its own, and without its messages."""

import contextlib
import logging
import re
import sys
import traceback
import warnings

import jax
import orbax.checkpoint as ocp


def alone() -> ocp.options.MultiprocessingOptions:
    """This process as if there were no others.

    With Orbax's barriers the others would wait 20 minutes where process 0 cannot write.
    """
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=None,  # no process waits for, or checks, what another one wrote
        active_processes={me},
        barrier_sync_key_prefix=f"process{me}",
    )


@contextlib.contextmanager
def silent():
    """Within it Orbax and TensorStore print nothing: their errors are raised besides."""

    def others(record):
        return "/orbax/" not in record.pathname

    def hook(seen):  # TensorStore's other reads and writes, when one has failed
        code = getattr(seen.object, "cr_code", None)
        ours = code is None or "/orbax/" not in code.co_filename
        if ours and str(seen.exc_value) != "Event loop is closed":
            before(seen)

    logger, before = logging.getLogger("absl"), sys.unraisablehook
    logger.addFilter(others)
    logging.getLogger("asyncio").addFilter(_of_no_save)  # stays
    sys.unraisablehook = hook
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            yield
    finally:
        logger.removeFilter(others)
        sys.unraisablehook = before


def _of_no_save(record: logging.LogRecord) -> bool:
    """False for what asyncio says, late, of the tasks of a failed save or read.

    They are Orbax's, or await TensorStore, which has no frames in Python: its messages name the
    driver of an array ("zarr") and the database around it (OCDBT).
    """
    error = record.exc_info[1] if record.exc_info else None
    frames = traceback.walk_tb(error.__traceback__ if error else None)
    theirs = any("/orbax/" in frame.f_code.co_filename for frame, _ in frames)
    return not theirs and not re.search(r'"zarr" driver|OCDBT', str(error))

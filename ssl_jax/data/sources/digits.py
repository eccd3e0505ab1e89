"""5,000 digits of MNIST: a real data set that needs no network."""

import contextlib
import io
import logging
import os
import shutil
import tempfile

from ssl_jax.contract.source import Source
from ssl_jax.data.sources import tfds
from ssl_jax.errors import UserError

log = logging.getLogger(__name__)


def open_digits(split: str, data) -> Source:
    """4,000 training or 1,000 test digits, 28 x 28 grey, resized to `data.size` x `data.channels`.

    They are prepared as a TFDS set on first use (some seconds), under `data.dir` or TFDS's folder.
    The index of an example is its place in the split; see digits_builder.py for the split itself.
    """
    return tfds.from_folder(prepare(data.dir), split, "digits", split, data)


def prepare(folder: str | None) -> str:
    """Prepares the set unless it is there.

    Several processes may start at once: each prepares in a folder of its own, the first to finish
    renames it into place, the others throw theirs away.

    Args:
      folder: the TFDS folder; None for TFDS's own, or, if that cannot be written, one of this user
        in the system's folder for temporary files.

    Returns:
      The path …/ssl_jax_digits/1.0.0.

    Raises:
      UserError: the folder cannot be written.
    """
    from tensorflow_datasets.core import constants

    root = os.path.abspath(os.path.expanduser(folder or constants.DATA_DIR))
    try:
        return _prepare(root)
    except OSError as error:
        reason = f"{error.strerror or error} ({error.filename or root})"
    if not folder:
        own = os.path.join(tempfile.gettempdir(), f"ssl_jax-{os.getuid()}")
        log.warning("cannot prepare the digits under %s: %s; using %s", root, reason, own)
        with contextlib.suppress(OSError):
            os.makedirs(own, mode=0o700, exist_ok=True)
            if os.lstat(own).st_uid == os.getuid():  # not laid there by another user
                return _prepare(own)
    raise UserError(
        f"Cannot prepare the digits under {root}: {reason}. Set --config.data.dir to a folder you "
        f"may write."
    )


def _prepare(root: str) -> str:
    final = os.path.join(root, "ssl_jax_digits", "1.0.0")
    if os.path.exists(os.path.join(final, "dataset_info.json")):
        return final
    from tensorflow_datasets.core.download import DownloadConfig

    from ssl_jax.data.sources.digits_builder import SslJaxDigits

    os.makedirs(os.path.dirname(final), exist_ok=True)
    own = tempfile.mkdtemp(prefix=".ssl_jax_digits-", dir=root)
    try:
        builder = SslJaxDigits(data_dir=own, file_format="array_record")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            # It prints a banner and progress bars. Without a download it asks no server.
            builder.download_and_prepare(download_config=DownloadConfig(try_download_gcs=False))
        try:
            os.rename(builder.data_dir, final)
        except OSError:
            if not os.path.exists(os.path.join(final, "dataset_info.json")):
                raise
    finally:
        shutil.rmtree(own, ignore_errors=True)
    return final

"""TFRecord -> array_record, once, beside the original. The only use of TensorFlow.

TFDS's own `tfds convert_format` cannot be imported without apache-beam, whose requirements would
take half of the environment back by years. So the shards go through the file adapters that the
command itself uses, and the metadata gets the same entry (`alternative_file_formats`): to TFDS it
is a set in two formats.
"""

import contextlib
import fcntl
import importlib.util
import logging
import os

from ssl_jax.errors import UserError

log = logging.getLogger(__name__)


def convert(folder: str) -> None:
    """Adds array_record files to the set prepared in `folder` (…/set[/config]/version).

    Safe with several processes: one converts, the others wait for its lock. An interrupted
    conversion goes on where it stopped, since shards and metadata appear by renaming.

    Raises:
      UserError: TensorFlow is not installed, the folder cannot be written, or a shard is damaged.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"{folder} is stored as TFRecord, which takes TensorFlow to convert (once): pip "
            f"install ssl_jax[tf], or prepare the set anew with file_format='array_record'."
        )
    try:
        with _lock(os.path.join(folder, ".array_record.lock")):
            _convert(folder)
    except OSError as error:
        raise UserError(
            f"Cannot convert {folder} from TFRecord: {error.strerror or error} "
            f"({error.filename or folder}). Point --config.data.dir at a copy you may write."
        ) from error


@contextlib.contextmanager
def _lock(path: str):
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # let go when the file closes, or the process dies
        yield


def _convert(folder: str) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # it greets in a dozen lines
    import tensorflow as tf
    from tensorflow_datasets.core import dataset_info, file_adapters

    # JAX owns the GPUs; TensorFlow would take all of their memory. It refuses once it runs, in a
    # process that uses it anyway.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")

    formats = file_adapters.FileFormat
    proto = dataset_info.read_proto_from_builder_dir(folder)
    if formats.ARRAY_RECORD.value in proto.alternative_file_formats:
        return  # another process did it while we waited
    if proto.file_format != formats.TFRECORD.value:
        raise UserError(f"{folder} is stored as {proto.file_format}; array_record is needed.")
    old = file_adapters.ADAPTER_FOR_FORMAT[formats.TFRECORD]
    new = file_adapters.ADAPTER_FOR_FORMAT[formats.ARRAY_RECORD]
    log.warning("converting %s from TFRecord to array_record, once", folder)
    for split in dataset_info.get_split_dict_from_proto(proto, data_dir=folder).values():
        template = split.filename_template
        target = template.replace(filetype_suffix=formats.ARRAY_RECORD.file_suffix)
        shards = len(split.shard_lengths)
        for number, length in enumerate(split.shard_lengths):
            source = os.fspath(template.sharded_filepath(shard_index=number, num_shards=shards))
            path = os.fspath(target.sharded_filepath(shard_index=number, num_shards=shards))
            if os.path.exists(path):
                continue
            try:
                new.write_examples(
                    path + ".part",
                    ((i, record.numpy()) for i, record in enumerate(old.make_tf_data(source))),
                )
            except tf.errors.OpError as error:  # a missing or damaged shard
                raise UserError(f"Cannot read {source}: {error.message}") from error
            written = new.num_examples(path + ".part")
            if written != length:
                raise UserError(f"{source} holds {written} examples instead of {length}.")
            os.replace(path + ".part", path)
    proto.alternative_file_formats.append(formats.ARRAY_RECORD.value)
    info = os.fspath(dataset_info.dataset_info_path(folder))
    with open(info + ".part", "w") as file:
        file.write(dataset_info.get_dataset_info_json(proto))
    os.replace(info + ".part", info)

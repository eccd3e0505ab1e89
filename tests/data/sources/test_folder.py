import logging
import os

import ml_collections
import numpy as np
import pytest

from ssl_jax.data import loader
from ssl_jax.data.decode import reader
from ssl_jax.data.sources import NoSplit, absolute, open_source
from ssl_jax.data.sources.folder import listing, split_folders
from ssl_jax.errors import UserError

FORMATS = (("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".webp"), ("BMP", ".BMP"), ("GIF", ".gif"),
           ("TIFF", ".tif"), ("JPEG", ".JPEG"), ("PPM", ".ppm"))  # fmt: skip


@pytest.fixture
def tree(tmp_path, encode):
    """Writes pictures: {'a/b.png': level} -> folder; each is flat, so that it can be told apart."""

    def write(files):
        for name, level in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            flat = isinstance(level, int)
            data = encode(np.full((6, 6), level, np.uint8), "PNG") if flat else level
            path.write_bytes(data)
        return str(tmp_path)

    return write


@pytest.fixture(scope="session")
def mixed(tmp_path_factory, encode, smooth, broken):
    """300 pictures in all formats, five of them broken, two side by side."""
    root = tmp_path_factory.mktemp("mixed")
    random = np.random.default_rng(0)
    bad = dict(zip((3, 100, 101, 222, 299), broken.items(), strict=True))
    for i in range(300):
        folder = root / f"part{i // 100}" / "deep"
        folder.mkdir(parents=True, exist_ok=True)
        if i in bad:
            name, data = bad[i]
            (folder / f"{i:03d}-{name}").write_bytes(data)
        else:
            format, extension = FORMATS[i % len(FORMATS)]
            h, w = random.integers(10, 40, 2)
            (folder / f"{i:03d}{extension}").write_bytes(encode(smooth(h, w), format))
    return str(root), sorted(bad)


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_five_broken_of_300_are_named_and_replaced(config, mixed, caplog, cache_bytes):
    root, bad = mixed
    source = open_source(config(source=f"folder:{root}", cache_bytes=cache_bytes), "train")
    assert (source.examples, source.classes) == (300, 0)
    assert source.fields["image"].shape == (16, 16, 3)
    seen = []
    with caplog.at_level(logging.WARNING):
        for batch in loader.batches(source, seed=0, batch=32, stop=20, threads=2):
            assert batch["image"].shape == (32, 16, 16, 3) and (batch["label"] == -1).all()
            seen.extend(batch["index"])
    assert len(seen) == 640 and len(set(seen)) == 295 and not set(seen) & set(bad)
    found = source.bad()
    assert [path.split("/")[-1][:3] for path, _ in found] == ["003", "100", "101", "222", "299"]
    messages = [r.getMessage() for r in caplog.records]
    assert len(messages) == 5  # once each
    assert all(sum(path in m and reason in m for m in messages) == 1 for path, reason in found)


def test_the_next_readable_picture_takes_the_place(config, mixed):
    root, bad = mixed
    source = open_source(config(source=f"folder:{root}"), "train")
    for _ in range(2):  # from the files, then from memory
        batch = source.read(np.array([3, 4, 100, 101, 102, 299, 0, 3]))
        np.testing.assert_array_equal(batch["index"], [4, 4, 102, 102, 102, 0, 0, 4])
        for i, same in ((0, 1), (2, 4), (3, 4), (5, 6), (7, 1)):
            np.testing.assert_array_equal(batch["image"][i], batch["image"][same])


def test_with_and_without_memory_and_in_any_order(config, mixed):
    root, _ = mixed
    kept = open_source(config(source=f"folder:{root}"), "train")
    read = open_source(config(source=f"folder:{root}", cache_bytes=300 * 16 * 16 * 3 - 1), "train")
    rows = np.random.default_rng(0).permutation(300)
    first, second = kept.read(np.arange(300)), read.read(rows)
    again = kept.read(rows)
    for key in ("image", "index", "label"):
        np.testing.assert_array_equal(first[key][rows], second[key])
        np.testing.assert_array_equal(again[key], second[key])
        assert first[key].dtype == (np.uint8 if key == "image" else np.int32)


def test_pictures_are_kept_in_memory_below_cache_bytes(config, tree):
    root = tree({"a.png": 10, "b.png": 20})
    kept = open_source(config(source=f"folder:{root}"), "train")
    read = open_source(config(source=f"folder:{root}", cache_bytes=100), "train")
    for source in (kept, read):
        source.read([0, 1])
    batch = kept.read([1])
    batch["image"][:] = 99  # the caller's own
    os.remove(f"{root}/b.png")
    assert (kept.read([1])["image"] == 20).all()
    assert (read.read([1])["image"] == 10).all()  # gone, so the next takes its place
    assert read.bad() == [(f"{root}/b.png", "No such file or directory")]


def test_too_many_broken_pictures_stop_the_run(config, mixed, tmp_path, broken):
    root, _ = mixed
    with pytest.raises(UserError) as error:
        strict = open_source(config(source=f"folder:{root}", max_bad=0), "train")
        list(loader.batches(strict, seed=0, batch=32, stop=20))
    assert "1 of the 300 pictures" in str(error.value) and "--config.data.max_bad" in str(
        error.value
    )
    for i in range(6):
        (tmp_path / f"{i}.jpg").write_bytes(broken["truncated.jpg"])
    for i in range(294):
        os.symlink(f"{root}/part0/deep/001.png", tmp_path / f"x{i}.png")
    with pytest.raises(UserError) as error:
        open_source(config(source=f"folder:{tmp_path}"), "train").read(np.arange(300))
    message = str(error.value)
    assert "6 of the 300 pictures" in message and "\n" not in message
    assert f"{tmp_path}/5.jpg: image file is truncated" in message
    source = open_source(config(source=f"folder:{tmp_path}", max_bad=0.02), "train")
    np.testing.assert_array_equal(source.read(np.arange(8))["index"], [6] * 7 + [7])
    assert len(source.bad()) == 6


def test_nothing_readable(config, tree):
    root = tree({"a.png": b"", "b.png": b"x"})
    with pytest.raises(UserError, match="None of the 2 pictures"):
        open_source(config(source=f"folder:{root}"), "train").read([1])


@pytest.mark.parametrize(
    "n, max_bad, limit",
    [(300, 0.01, 5), (600, 0.01, 6), (601, 0.01, 7), (300, 0.02, 6), (100, 0.07, 7), (9, 1, 9),
     (300, 0, 0)],
)  # fmt: skip
def test_allowed(n, max_bad, limit):
    assert reader.allowed(n, max_bad) == limit


def test_listing_is_sorted_deep_and_skips_the_hidden(tree):
    root = tree({
        "b/z.PNG": 1, "b/a/1.jpeg": 1, "a.png": 1, ".hidden.png": 1, ".git/x.png": 1,
        "notes.txt": b"", "B/c.TiF": 1, "b.png/x.webp": 1, "._a.jpg": 1, "png": b"",
    })  # fmt: skip
    assert listing(root) == ["B/c.TiF", "a.png", "b.png/x.webp", "b/a/1.jpeg", "b/z.PNG"]


def test_a_picture_is_called_by_its_path(config, tree):
    root = tree({"train/cat/b.png": 1, "train/cat/a.png": 2, "test/cat/c.png": 3})
    for split, names in (("train", ["cat/a.png", "cat/b.png"]), ("test", ["cat/c.png"])):
        source = open_source(config(source=f"folder:{root}"), split)
        assert [source.describe(row) for row in range(source.examples)] == names


def test_links_are_followed_but_not_in_circles(tree, tmp_path):
    root = tree({"real/a.png": 1, "real/sub/b.png": 2, "set/c.png": 3})
    os.symlink(f"{root}/real", f"{root}/set/link")
    os.symlink(f"{root}/set", f"{root}/real/sub/back")
    os.symlink(f"{root}/set", f"{root}/set/self")
    os.symlink("nowhere.png", f"{root}/set/dangling.png")
    assert listing(f"{root}/set") == [
        "c.png", "dangling.png", "link/a.png", "link/sub/b.png",
    ]  # fmt: skip


def test_a_name_that_is_not_utf8_is_named(config, tmp_path, encode, caplog):
    name = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
    with open(name, "wb"):
        pass
    (tmp_path / "z.png").write_bytes(encode(np.zeros((4, 4), np.uint8), "PNG"))
    source = open_source(config(source=f"folder:{tmp_path}"), "train")
    np.testing.assert_array_equal(source.read([0])["index"], [1])
    source.bad()[0][0].encode()  # can be written anywhere
    assert "caf?.png: the file is empty" in caplog.text


def test_splits_of_a_folder(config, tree):
    root = tree({"train/x/1.png": 1, "train/y/2.png": 2, "val/y/3.png": 3, "val/z/4.png": 4})
    data = config(source=f"folder:{root}", labels=True)
    train, test = open_source(data, "train"), open_source(data, "test")
    assert (train.examples, test.examples) == (2, 2)
    # The same number means the same class, though each split lacks one.
    assert train.class_names == test.class_names == ("x", "y", "z")
    assert train.classes == 3
    np.testing.assert_array_equal(train.read([0, 1])["label"], [0, 1])
    np.testing.assert_array_equal(test.read([0, 1])["label"], [1, 2])
    assert (test.read([1])["image"] == 4).all()


def test_a_class_called_train_is_no_split(config, tree):
    root = tree({"car/1.png": 1, "train/2.png": 2})
    data = config(source=f"folder:{root}", labels=True)
    assert open_source(data, "train").class_names == ("car", "train")
    with pytest.raises(NoSplit, match="no test split"):
        open_source(data, "test")


def test_named_splits_and_a_lone_train(config, tree):
    root = tree({"unlabeled/1.png": 1, "eval/2.png": 2, "test/3.png": 3})
    data = config(source=f"folder:{root}", train_split="unlabeled", test_split="eval")
    assert (open_source(data, "train").read([0])["image"] == 1).all()
    assert (open_source(data, "test").read([0])["image"] == 2).all()
    root = tree({"lone/train/a/1.png": 1, "lone/train/b/2.png": 1}) + "/lone"
    data = config(source=f"folder:{root}", labels=True)
    assert open_source(data, "train").class_names == ("a", "b")
    with pytest.raises(NoSplit):
        open_source(data, "test")


def opened(config, root, caplog, **changes):
    """Both splits (None where there is no test split) and the lines of the log."""
    data = config(source=f"folder:{root}", **changes)
    caplog.clear()
    train, test = open_source(data, "train"), None
    try:
        test = open_source(data, "test")
    except NoSplit:
        pass
    return train, test, [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    "learn, judge",
    [
        ("train", "valid"), ("Train", "Test"), ("training", "testing"), ("TRAIN", "dev"),
        ("train", "eval"), ("Training", "Val"), ("train", "validation"), ("train", "Evaluation"),
    ],
)  # fmt: skip
def test_splits_are_recognised(config, tree, caplog, learn, judge):
    root = tree({f"{learn}/cat/1.png": 1, f"{learn}/dog/2.png": 2, f"{judge}/cat/3.png": 3})
    for asked in ({}, {"test_split": "validation"}):  # what configs say by themselves
        train, test, said = opened(config, root, caplog, labels=True, **asked)
        assert (train.examples, test.examples, train.class_names) == (2, 1, ("cat", "dog"))
        assert (test.read([0])["image"] == 3).all() and test.read([0])["label"] == [0]
    assert len(said) == (judge != "test" or learn != "train") and all(judge in m for m in said)


def test_the_split_of_several_that_is_meant(config, tree, caplog):
    root = tree({f"{name}/a/{i}.png": i for i, name in enumerate(("train", "test", "val", "more"))})
    _, test, said = opened(config, root, caplog)
    assert (test.read([0])["image"] == 1).all() and not said
    _, test, said = opened(config, root, caplog, test_split="validation")
    assert (test.read([0])["image"] == 2).all()
    assert said == [f"{root}: the test split is val/, more/, test/ left aside"]
    _, test, _ = opened(config, root, caplog, test_split="more")
    assert (test.read([0])["image"] == 3).all()
    train, test, _ = opened(config, root, caplog, train_split=".")
    assert train.examples == 4 and test is None


def test_a_folder_that_may_not_be_read_is_left_where_it_is(tree, tmp_path, monkeypatch):
    """lost+found, at the root of every disk: train/ and val/ beside it are read."""
    tree({"train/a/0.png": 1, "val/a/0.png": 2})
    (tmp_path / "lost+found").mkdir()
    look = os.scandir

    def scandir(path):
        if "lost+found" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return look(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert set(split_folders(str(tmp_path))) == {"train", "test"}
    (tmp_path / "val" / "a" / "0.png").unlink()
    (tmp_path / "val" / "a").rmdir()
    (tmp_path / "val").rmdir()
    assert split_folders(str(tmp_path)) == {"train": f"{tmp_path}/train"}


@pytest.mark.parametrize(
    "asked, message",
    [
        (
            {"train_split": "trian"},
            r"no split 'trian' \(--config.data.train_split\). Did you mean tr",
        ),
        ({"test_split": "vla"}, r"no split 'vla' \(--config.data.test_split\). Did you mean val"),
        ({"test_split": "Val"}, "no split 'Val'"),
        ({"train_split": "val", "test_split": "val"}, "val/ is both"),
        ({"train_split": ".", "test_split": "val"}, "train_split=. takes all"),
    ],
)
def test_a_split_that_is_named_must_be_there(config, tree, asked, message):
    root = tree({"train/1.png": 1, "val/2.png": 2})
    for split in ("train", "test"):
        with pytest.raises(UserError, match=message) as error:
            open_source(config(source=f"folder:{root}", **asked), split)
        assert not isinstance(error.value, NoSplit) and "\n" not in str(error.value)


def test_a_named_train_split_alone(config, tree, caplog):
    root = tree({"a/1.png": 1, "b/2.png": 2})
    train, test, said = opened(config, root, caplog, train_split="a")
    assert train.examples == 1 and test is None and not said
    with pytest.raises(UserError, match="b/ is a test split, but which folder is to learn from"):
        open_source(config(source=f"folder:{root}", test_split="b"), "train")


def test_what_could_be_a_split_is_asked_or_said(config, tree, caplog):
    root = tree({"train/cat/1.png": 1, "holdout/cat/2.png": 2})
    with pytest.raises(UserError) as error:
        open_source(config(source=f"folder:{root}"), "train")
    assert "--config.data.train_split=train --config.data.test_split=holdout says so" in str(
        error.value
    )
    train, test, _ = opened(config, root, caplog, test_split="holdout")
    assert (train.examples, test.examples) == (1, 1)
    assert opened(config, root, caplog, train_split=".")[0].examples == 2

    root = tree({"p/cat/1.png": 1, "p/val/2.png": 2}) + "/p"
    train, test, said = opened(config, root, caplog, labels=True)
    assert train.class_names == ("cat", "val") and test is None
    assert len(said) == 1 and "val/ is learned from as well" in said[0]
    root = tree({"car/1.png": 1, "train/2.png": 2, "q/car/1.png": 1, "q/train/2.png": 2}) + "/q"
    _, _, said = opened(config, root, caplog, labels=True)
    assert len(said) == 1 and "train/ is taken as a part of one training set" in said[0]
    root = tree({"r/runs/notes.txt": b"", "r/train/1.png": 1}) + "/r"  # no pictures in runs/
    train, test, said = opened(config, root, caplog)
    assert train.name.endswith("/r/train") and not said


def test_classes_that_train_and_test_do_not_share_are_named(config, tree, caplog):
    root = tree({"train/a/1.png": 1, "train/b/2.png": 2, "test/b/3.png": 3, "test/c/4.png": 4})
    train, _, said = opened(config, root, caplog, labels=True)
    assert train.class_names == ("a", "b", "c")
    assert said == [
        f"{root}: 1 of the 2 classes of test are not in train, and always judged as wrong: c"
    ]
    assert not opened(config, root, caplog)[2]  # no labels asked for


def test_no_class_in_common_is_no_accuracy(config, tree, caplog):
    root = tree({"train/a/1.png": 1, "test/b/3.png": 3})
    train, test, said = opened(config, root, caplog, labels=True)
    assert train.classes == test.classes == 0 and train.read([0])["label"] == [-1]
    assert said == [
        f"{root}: train (a) and test (b) have no class in common, so no accuracy can be measured"
    ]


def test_pictures_without_a_label(config, tree, caplog):
    root = tree({"train/unlabeled/1.png": 1, "test/a/2.png": 2, "test/b/3.png": 3})
    train, test, said = opened(config, root, caplog, labels=True)
    assert train.classes == test.classes == 0
    assert said == [
        f"{root}: train has no labels (its folders are unlabeled), so no accuracy can be measured"
    ]
    tree({"train/a/4.png": 4, "train/b/5.png": 5})
    train, _, said = opened(config, root, caplog, labels=True)
    assert train.class_names == ("a", "b")
    np.testing.assert_array_equal(train.read([0, 1, 2])["label"], [0, 1, -1])
    assert said == [f"{root}: pictures in unlabeled have no label"]


def test_pictures_that_runs_wrote_are_passed_over(config, tree, caplog):
    job = b'{"job": "retrieve", "checkpoint": "runs/x"}'
    root = tree({
        "a/1.png": 1, "a/result.json": b'{"mine": 1}', "b/config.json": b"{}", "b/2.png": 2,
        "runs/x/config.json": b"{}", "runs/x/report/views.png": 9, "runs/x/checkpoints/1/c": b"",
        "runs/y/config.json": b"{}", "runs/y/checkpoints/1/c": b"", "runs/y/knn/n.png": 9,
        "own/result.json": job, "own/neighbours.png": 9,
        "tuned/job.json": b"{}", "tuned/checkpoints/1/c": b"", "tuned/z.png": 9,
    })  # fmt: skip
    assert listing(root) == ["a/1.png", "b/2.png"]
    train, _, said = opened(config, root, caplog)
    assert train.examples == 2
    assert said == [f"{root}: 4 folder(s) of runs are passed over: own/, runs/x/, runs/y/, …"]
    # A folder that is itself named is read: its pictures were asked for.
    assert listing(f"{root}/runs/x/report") == ["views.png"]


def test_the_same_pictures_at_another_place_are_the_same(config, tree, tmp_path):
    import shutil

    root = tree({f"in/{name}/{i}.png": i for i in range(3) for name in "ab"}) + "/in"
    one = open_source(config(source=f"folder:{root}"), "train").identity
    shutil.copytree(root, f"{root}2")
    there = config(source=f"folder:{root}2")
    assert one and open_source(there, "train").identity == one
    os.rename(f"{root}2/a/1.png", f"{root}2/a/9.png")
    assert open_source(there, "train").identity != one
    os.rename(f"{root}2/a/9.png", f"{root}2/a/1.png")
    with open(f"{root}2/a/1.png", "ab") as file:
        file.write(b"longer")
    assert open_source(there, "train").identity != one


def test_a_source_of_another_kind_needs_no_fields_of_pictures(config, monkeypatch):
    from ssl_jax.data import sources

    kind = sources.Kind(lambda name, split, data: (name, split), "tokens:name", lambda d, k: None)
    monkeypatch.setitem(sources.KINDS, "tokens", kind)
    data = ml_collections.ConfigDict({"source": "tokens:words"})
    assert open_source(data, "test") == ("words", "test")


def test_a_folder_has_its_whole_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert absolute("folder:a, b/../c") == f"folder:{tmp_path}/c"
    assert absolute("folder:~/x") == "folder:/home/me/x"
    assert [absolute(s) for s in ("digits", "tfds:a/b:1.0.0")] == ["digits", "tfds:a/b:1.0.0"]


def test_labels_only_where_asked(config, tree):
    root = tree({"x/1.png": 1, "y/2.png": 2, "empty/readme.txt": b""})
    plain = open_source(config(source=f"folder:{root}"), "train")
    assert plain.classes == 0 and (plain.read([0, 1])["label"] == -1).all()
    asked = open_source(config(source=f"folder:{root}", labels=True), "train")
    assert asked.class_names == ("x", "y")
    tree({"loose.png": 3})
    with pytest.raises(UserError, match="loose.png lies in none"):
        open_source(config(source=f"folder:{root}", labels=True), "train")


def test_errors(config, tree, tmp_path):
    root = tree({"pictures/1.png": 1, "other/data.zip": b"", "nothing/.x.png": b""})
    with pytest.raises(UserError, match="There is no folder .*picturse, but there is .*/pictures"):
        open_source(config(source=f"folder:{root}/picturse"), "train")
    with pytest.raises(UserError, match="No pictures .*it holds data.zip"):
        open_source(config(source=f"folder:{root}/other"), "train")
    with pytest.raises(UserError, match="it is empty"):
        open_source(config(source=f"folder:{root}/nothing"), "train")
    with pytest.raises(UserError, match="Did you mean folder:"):
        open_source(config(source=root), "train")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"source": "digit"}, "Did you mean digits"),
        ({"source": "cifar10"}, "Known: digits, folder:/path, scenes, synthetic, tfds:name"),
        ({"source": "folder:"}, "Did you mean folder:/path"),
        ({"channels": 4}, "--config.data.channels=4 must be 1"),
        ({"fit": "crp"}, "Did you mean crop"),
        ({"size": 0}, "data.size=0"),
        ({"max_bad": 5}, "data.max_bad=5"),
        ({"source": "synthetic", "examples": 0}, "data.examples=0"),
        ({"source": "scenes", "channels": 2}, "--config.data.channels=2"),
        ({"source": "synthetic", "size": -1}, "--config.data.size=-1"),
        ({"source": "tfds:mnist", "fit": "sqush"}, "Did you mean squash"),
        ({"range": 17}, "--config.data.range is 17; it is the number of bits"),
        ({"range": (5, 5)}, "--config.data.range"),
        ({"range": "12 bits"}, "--config.data.range"),
        ({"source": "synthetic", "train_split": "trian"}, "no split 'trian'.*Did you mean train"),
        ({"source": "digits", "test_split": "val"}, "digits has no split 'val'.*test_split"),
    ],
)
def test_wrong_fields(config, changes, message):
    with pytest.raises(UserError, match=message):
        open_source(config(**changes), "train")


def test_a_home_folder_is_expanded(config, tree, monkeypatch):
    root = tree({"a.png": 7})
    monkeypatch.setenv("HOME", root)
    assert (open_source(config(source="folder:~"), "train").read([0])["image"] == 7).all()

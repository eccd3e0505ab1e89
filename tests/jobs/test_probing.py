"""Jobs on checkpoints: one run, several, and what a user mistypes."""

import json
import pathlib
import shutil
import statistics
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit import tiny_run
from PIL import Image

from ssl_jax import models
from ssl_jax.contract.batch import image
from ssl_jax.contract.method import Run
from ssl_jax.devices import layout
from ssl_jax.errors import UserError
from ssl_jax.evaluate import probing
from ssl_jax.evaluate.features import encoder, representation, run_features
from ssl_jax.logs import metrics
from ssl_jax.report import run as report
from ssl_jax.report import worth
from ssl_jax.runs import config as configs
from ssl_jax.runs import workdir


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs that differ in their seed."""
    folder = tmp_path_factory.mktemp("probing")
    for seed in (0, 1):
        tiny_run.finished(folder / str(seed), seed)
    return folder


def test_several_runs_have_a_mean_and_a_deviation(runs, tmp_path, capsys):
    both = f"{runs / '0'},{runs / '1'}"
    assert tiny_run.probe("knn", both, f"--workdir={tmp_path}") == 0
    found = json.loads((tmp_path / "result.json").read_text())
    each = [json.loads((runs / s / "knn" / "result.json").read_text()) for s in "01"]
    assert found["runs"] == each and [r["seed"] for r in each] == [0, 1]
    values = [r["knn_top1"] for r in each]
    assert found["over_runs"]["knn_top1"] == {
        "mean": statistics.mean(values),
        "sd": statistics.stdev(values),
    }
    assert "seed" not in found["over_runs"] and "step" not in found["over_runs"]
    assert "knn of 2 runs, mean ± standard deviation" in capsys.readouterr().out


def test_runs_are_named_by_where_they_lie(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(runs)
    (tmp_path / "a, b").symlink_to(runs / "0")
    odd = str(tmp_path / "a, b")
    assert probing.runs_named(odd, "checkpoint") == [tmp_path / "a, b"]
    both = probing.runs_named(f"{odd.replace(',', chr(92) + ',')} , 1/", "runs")
    assert both == [tmp_path / "a, b", pathlib.Path("1")]
    assert probing.runs_named("", "runs") == []
    for twice in ("0,0/", f"0,{runs}/1/../0", "0,./0,1"):
        with pytest.raises(UserError, match="--config.checkpoint names 0 2 times"):
            probing.runs_named(twice, "checkpoint")
    with pytest.raises(UserError, match=r"no run in .*a \(no config.json\); a comma in a path"):
        probing.runs_named(f"{odd},0", "checkpoint")


def test_a_result_says_how_many_images_its_numbers_are_of(runs):
    result = workdir.read_result(runs / "0")
    counts = ("train_examples", "test_examples", "train_set", "test_set")
    assert [result[name] for name in counts] == [500, 200, 4000, 1000]
    said = "learned from 500 of 4,000 training images, judged on 200 of 1,000 test images"
    assert worth.sample(result) == said
    assert f"kNN and linear: {said}" in report.text(result, runs / "0")
    whole = {**result, "train_set": 500, "judged_on": "a fifth of train, held out of the probes"}
    assert "from 500 training images, judged on 200 of 1,000 held-out" in worth.sample(whole)
    old = {k: v for k, v in result.items() if k not in counts}
    assert worth.sample(old) is None and "kNN and linear:" not in report.text(old, runs / "0")


def test_the_holdout_is_of_train(runs, tmp_path):
    assert tiny_run.probe("knn", runs / "0", "--config.split=holdout", f"--workdir={tmp_path}") == 0
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["judged_on"] == "holdout" and "train" in found["dataset"]


@pytest.mark.parametrize(
    "checkpoint, more, message",
    [
        ("{0}/nowhere", (), "there is no run in"),
        ("{0}/0,{0}/0", (), "2 times"),
        (",", (), "nothing before or after a comma"),
        ("{0}/0,", (), "nothing before or after a comma"),
        ("{0}/0", ("--config.seed=-1",), "no field seed"),
        ("{0}/0", ("--workdir={0}/1",), "holds a pretraining run, whose result would be lost"),
        ("{0}/0", ("--config.split=tests",), "Did you mean test?"),
        ("{0}/0", ("--config.features=pixel",), "Did you mean pixels?"),
        ("{0}/0", ("--config.test_examples=0",), "test_examples is 0; it must be at least 1"),
    ],
)
def test_a_mistake_is_one_line(runs, capsys, checkpoint, more, message):
    code = tiny_run.probe("knn", checkpoint.format(runs), *(m.format(runs) for m in more))
    err = capsys.readouterr().err
    assert code == 2 and message in err and err.count("\n") == 1


def test_the_baselines_are_those_of_the_run(runs):
    """kNN on pixels and on the untrained encoder, as the run itself reports them."""
    own = json.loads((runs / "0" / "result.json").read_text())
    for which in ("pixels", "untrained"):
        assert tiny_run.probe("knn", runs / "0", f"--config.features={which}") == 0
        found = json.loads((runs / "0" / f"knn_{which}" / "result.json").read_text())
        assert found["features"] == which
        assert found["knn_top1"] == own["baselines"][which]["knn_top1"]
    assert own["baselines"]["pixels"]["knn_top1"] != own["knn_top1"]


def test_every_question_has_a_folder_of_its_own(runs, capsys):
    """Neither the hold-out nor the baseline nor other images write over the result on test."""
    assert tiny_run.probe("knn", runs / "1") == 0
    before = (runs / "1" / "knn" / "result.json").read_bytes()
    assert tiny_run.probe("knn", runs / "1", "--config.split=holdout") == 0
    assert tiny_run.probe("knn", runs / "1", "--config.data.source=synthetic") == 0
    assert (runs / "1" / "knn" / "result.json").read_bytes() == before
    for folder in ("knn_holdout", "knn_synthetic"):
        assert (runs / "1" / folder / "result.json").exists()
    assert "500 of the 4,000 images of digits train (--config.train_examples)" in (
        capsys.readouterr().out
    )


def test_names_of_folders():
    config = probing.defaults("knn")
    config.features = "pixels"
    assert probing.name_of(config) == "knn_pixels"
    config.split, config.data.source = "holdout", "folder:/a/flowers/"
    assert probing.name_of(config) == "knn_pixels_flowers_holdout"
    assert probing.short_name("tfds:imagenet2012_subset/1pct") == "imagenet2012_subset_1pct"


def test_names_of_splits_go_with_their_set():
    saved = configs.defaults().data
    saved.test_split = "validation"
    asked = probing.defaults("knn").data
    assert probing.data_of(saved, asked, labels=True).test_split == "validation"
    asked.source = "tfds:cifar10"
    found = probing.data_of(saved, asked, labels=True)
    assert (found.train_split, found.test_split) == ("train", "test")
    asked.test_split = "val"
    assert probing.data_of(saved, asked, labels=True).test_split == "val"
    asked.source = "folder:/a"
    assert probing.data_of(saved, asked, labels=True).labels is True
    assert probing.data_of(saved, asked, labels=False).labels == saved.labels


def pictures(folder, names):
    r = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(r.integers(0, 255, (28, 28), np.uint8)).save(folder / name)
    return f"--config.data.source=folder:{folder}"


def test_without_a_test_split_it_says_holdout(runs, tmp_path, capsys):
    source = pictures(tmp_path / "set", [f"{c}/{i}.png" for c in "ab" for i in range(10)])
    where = f"--workdir={tmp_path / 'w'}"
    assert tiny_run.probe("knn", runs / "0", source, where) == 2  # k = 20, and 16 to learn from
    assert "--config.k is 20, but there are only 16 images" in capsys.readouterr().err
    assert tiny_run.probe("knn", runs / "0", source, where, "--config.k=5") == 0
    assert json.loads((tmp_path / "w" / "result.json").read_text())["judged_on"] == "holdout"
    assert "16 training and 4 held-out training images" in capsys.readouterr().out
    # A test split that was asked for by its name must be there.
    assert tiny_run.probe("knn", runs / "0", source, "--config.data.test_split=val") == 2
    assert "has no split 'val' (--config.data.test_split)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "names, job, message",
    [
        (["a/0.png"], "knn", "1 image(s): too few to learn from some and to be judged on others"),
        (["0.png"], "analyze", "analyze needs two images, there is 1"),
    ],
)
def test_a_set_of_one_picture_is_one_line(runs, tmp_path, capsys, names, job, message):
    assert tiny_run.probe(job, runs / "0", pictures(tmp_path, names)) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_classes_without_a_label_are_no_accuracy():
    """As the unlabelled split of STL-10: ten classes, and every label -1."""
    r = np.random.default_rng(0)
    x, y = (r.normal(size=(n, 4)).astype(np.float32) for n in (30, 10))
    known, none = np.arange(10) % 3, np.full(30, -1)
    judged = representation.judge((x, none), (y, known), 3)
    assert judged.knn_top1 is judged.linear_top1 is judged.predicted is None
    assert judged.collapse["feature_std"] > 0
    assert representation.judge((x, np.arange(30) % 3), (y, known), 3).knn_top1 is not None
    # No class in common: every accuracy would be 0.
    others = representation.judge((x, np.full(30, 2)), (y, np.arange(10) % 2), 3)
    assert others.knn_top1 is others.linear_top1 is None
    with pytest.raises(UserError, match="have no class in common"):
        representation.check_classes(np.full(30, 2), np.array([0, 1, -1]))
    representation.check_classes(np.full(30, 2), np.array([0, 2, -1]))
    representation.check_classes(none, known)


def test_any_kept_checkpoint_can_be_probed(tmp_path, capsys):
    """The best, the last, one by number and one by its path; each writes to a folder of its own."""
    more = ("--config.monitor.every_steps=4", "--config.checkpoint.best=min:knn_top1")
    assert tiny_run.run(tmp_path, *more) == 0
    kept = sorted(int(f.name) for f in (tmp_path / "checkpoints").iterdir() if f.name.isdigit())
    lines = metrics.read(tmp_path / "metrics.jsonl")
    looked = {r["step"]: r["knn_top1"] for r in lines if "knn_top1" in r}
    best = min(looked, key=looked.get)
    assert best in kept and kept[-1] == 12
    for which, (path, step) in {
        "knn": (tmp_path, 12),
        "knn_best": (tmp_path, best),
        "knn_8": (tmp_path, 8),
        "knn_12": (tmp_path / "checkpoints" / "12", 12),
    }.items():
        asked = which.partition("_")[2] or "last"
        more = () if "checkpoints" in str(path.parent.name) else (f"--config.step={asked}",)
        assert tiny_run.probe("knn", path, *more) == 0
        assert json.loads((tmp_path / which / "result.json").read_text())["step"] == step
    capsys.readouterr()
    assert tiny_run.probe("knn", tmp_path, "--config.step=7") == 2
    said = capsys.readouterr().err
    assert "--config.step=7" in said and "no such checkpoint" in said and said.count("\n") == 1


def test_a_run_in_bfloat16_is_probed_in_float32_unless_asked(runs, tmp_path, capsys):
    shutil.copytree(runs / "0", tmp_path / "low")
    config = tmp_path / "low" / "config.json"
    config.write_text(config.read_text().replace('"dtype": "float32"', '"dtype": "bfloat16"'))
    of = {
        dtype: encoder.restore(tmp_path / "low", layout.mesh(), dtype=dtype)
        for dtype in (None, "float32", "bfloat16")
    }
    got = {dtype: restored.encoder.network.dtype for dtype, restored in of.items()}
    assert got == {None: jnp.bfloat16, "float32": jnp.float32, "bfloat16": jnp.bfloat16}
    assert all(restored.trained_in == "bfloat16" for restored in of.values())
    x = jax.random.normal(jax.random.key(0), (4, 28, 28, 1))
    full, low = (of[d].encoder.embed(of[d].variables, x) for d in ("float32", "bfloat16"))
    assert 1e-4 < np.abs(full - low).max() < 0.1 * np.abs(full).max()
    for run in (runs / "0", tmp_path / "low"):
        assert tiny_run.probe("knn", run) == 0
    found = [
        json.loads((run / "knn" / "result.json").read_text())
        for run in (runs / "0", tmp_path / "low")
    ]
    assert found[0]["knn_top1"] == found[1]["knn_top1"]
    capsys.readouterr()
    for wrong, said in (("float16", "dtype: unknown 'float16'"), ("float64", "JAX_ENABLE_X64=1")):
        assert tiny_run.probe("knn", runs / "0", f"--config.dtype={wrong}") == 2
        assert said in capsys.readouterr().err


def test_embeddings_behind_the_projector(runs, capsys):
    """By hand: linear, BatchNorm with running statistics, ReLU, linear, scale of a BatchNorm."""
    mesh = layout.mesh()
    both = encoder.restore(runs / "0", mesh, "projector")
    x = jax.random.normal(jax.random.key(0), (4, 28, 28, 1))
    model = models.make(both.saved.config.model)
    found = both.encoder.embed(both.variables, x)

    variables = jax.tree.map(np.asarray, both.variables["projector"])
    h = np.asarray(model.apply(both.variables["encoder"], x, train=False))
    for i, last in enumerate((False, True)):
        p, norm = (variables["params"][f"{name}{i}"] for name in ("linear", "norm"))
        stats = variables["batch_stats"][f"norm{i}"]
        h = h @ p["kernel"] + p.get("bias", 0)
        h = (h - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * norm["scale"] + norm.get("bias", 0)
        h = h if last else np.maximum(h, 0)
    np.testing.assert_allclose(found, h, rtol=1e-4, atol=1e-5)

    assert tiny_run.probe("knn", runs / "0", "--config.features=projector") == 0
    behind = json.loads((runs / "0" / "knn_projector" / "result.json").read_text())
    own = json.loads((runs / "0" / "result.json").read_text())
    assert 0.1 < behind["knn_top1"] != own["knn_top1"]
    run = Run(64, 16, 4, 10, image(28, 1))
    mae = workdir.Saved(configs.load("configs/mae.py:digits")[0], run, 1)
    opened = types.SimpleNamespace(restored=encoder.Restored(mae, 0, None, None, "float32"))
    with pytest.raises(UserError, match="mae has no projector"):
        run_features.network(opened, "projector")

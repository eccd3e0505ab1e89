"""Fine-tuning: what is adopted, the same on any devices, exact resume, and what is mistyped."""

import functools
import json
import os
import shutil
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from kit import programs, tiny_run

from ssl_jax import augment, models
from ssl_jax.augment.erasing import Erasing
from ssl_jax.augment.mixing import Mixing, soft_targets
from ssl_jax.checkpoints import tree
from ssl_jax.contract.batch import image
from ssl_jax.contract.method import Context
from ssl_jax.contract.source import Source
from ssl_jax.devices import collectives, layout, mapping
from ssl_jax.errors import UserError
from ssl_jax.evaluate.features import encoder, representation
from ssl_jax.evaluate.finetuning import check, plan, start
from ssl_jax.jobs import finetune
from ssl_jax.logs import metrics as logs
from ssl_jax.optim import optimizers, schedules
from ssl_jax.runs import config as configs
from ssl_jax.train import supervised

# Plain SGD with everything random on.
SGD = (
    "--config.optimizer.name=sgd",
    "--config.optimizer.learning_rate=0.02",
    "--config.optimizer.momentum=0.0",
    "--config.optimizer.warmup_fraction=0.0",
    "--config.head_learning_rate=1.0",
    "--config.mixing.mixup=0.8",
    "--config.mixing.cutmix=1.0",
    "--config.erasing.probability=0.5",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs that differ in their seed."""
    folder = tmp_path_factory.mktemp("finetune")
    for seed in (0, 1):
        tiny_run.finished(folder / str(seed), seed)
    return folder


def arguments(checkpoint, *more):
    return [
        "--config=configs/finetune.py",
        f"--config.checkpoint={checkpoint}",
        "--config.train_examples=500",
        "--config.test_examples=200",
        "--config.batch=64",
        "--config.steps=6",
        "--config.log_every=1",
        "--config.cpu_devices=4",
        f"--config.compile_cache={jax.config.jax_compilation_cache_dir}",
        *more,
    ]


def run(checkpoint, *more):
    return tiny_run.main.main(arguments(checkpoint, *more))


def losses(folder):
    return [r["loss"] for r in logs.read(folder / "metrics.jsonl") if "loss" in r]


def result(folder):
    return json.loads((folder / "result.json").read_text())


def saved(folder, step):
    """The state that a checkpoint holds, as nested dictionaries."""
    with ocp.PyTreeCheckpointer() as reader:
        return reader.restore(folder / "checkpoints" / str(step) / "state")


def test_four_devices_equal_one(runs, tmp_path):
    """In float64, where equal means equal to nine digits on any processor."""
    few = ("--config.batch=32", "--config.train_examples=128", "--config.test_examples=64")
    more = (*SGD, "--config.dtype=float64", *few)
    command = arguments(runs / "0", *more, f"--workdir={tmp_path}/one", "--config.cpu_devices=1")
    with programs.float64():
        assert run(runs / "0", *more, f"--workdir={tmp_path}/four", "--config.monitor_every=3") == 0
    subprocess.run(
        [sys.executable, "-m", "ssl_jax.main", *command],
        cwd=tiny_run.REPOSITORY,
        check=True,
        env={**os.environ, "JAX_ENABLE_X64": "1"},
    )
    four, one = losses(tmp_path / "four"), losses(tmp_path / "one")
    assert len(four) == 6 and np.ptp(four) > 0.02, "it stands still"
    np.testing.assert_allclose(four, one, rtol=1e-9)
    found = result(tmp_path / "four")
    assert found == {**result(tmp_path / "one"), "finetune_top1": found["finetune_top1"]}
    assert abs(found["finetune_top1"] - result(tmp_path / "one")["finetune_top1"]) < 0.02
    assert found["train_examples"] == 128 and found["test_examples"] == 64
    assert found["finetune_top5"] > found["finetune_top1"]
    looks = [r for r in logs.read(tmp_path / "four" / "metrics.jsonl") if "finetune_top1" in r]
    assert [r["step"] for r in looks] == [3, 6]


def test_what_was_fine_tuned_is_probed_like_any_run(runs, tmp_path, capsys):
    """Its encoder by kNN; its classifier's scores, the largest of which is the class."""
    assert run(runs / "0", *SGD, f"--workdir={tmp_path}/tuned") == 0
    (runs / "0").rename(tmp_path / "moved")  # it needs the pretraining run no more
    try:
        for name, more in {"knn": (), "scores": ("--config.encoder=classifier",)}.items():
            more = (*more, f"--workdir={tmp_path / name}")
            assert tiny_run.probe("knn", tmp_path / "tuned", *more) == 0
            assert result(tmp_path / name)["knn_top1"] > 0.1
        found = encoder.restore(tmp_path / "tuned", layout.mesh(), "classifier")
        assert found.step == 6 and found.saved.finetuned["classes"] == 10
        rows = {"image": np.zeros((2, 28, 28, 1), np.uint8)}
        assert found.encoder.features(found.variables, rows).shape == (2, 10)
    finally:
        (tmp_path / "moved").rename(runs / "0")
    said = capsys.readouterr().out
    assert "knn_classifier on digits" in said


def test_the_encoder_of_the_run_is_where_it_begins(runs, tmp_path):
    """With a rate of 0 the parameters stay; BatchNorm's statistics do not."""
    still = (
        "--config.optimizer.learning_rate=0.0",
        "--config.steps=1",
        "--config.layer_decay=1.0",
    )
    learned = encoder.restore(runs / "0", layout.mesh()).variables
    for name, more in (
        ("whole", ()),
        ("fresh", ("--config.fresh=('^bn1/', 'layer1_0/conv1')",)),
        ("scratch", ("--config.scratch=True",)),
    ):
        assert run(runs / "0", *still, *more, f"--workdir={tmp_path / name}") == 0
    for name, afresh in (
        ("whole", set()),
        ("fresh", {"['bn1']['scale']", "['bn1']['bias']", "['layer1_0']['conv1']['kernel']"}),
    ):
        state = saved(tmp_path / name, 1)
        got = jax.tree_util.tree_leaves_with_path(state["params"]["encoder"])
        wanted = dict(jax.tree_util.tree_leaves_with_path(learned["params"]))
        changed = {jax.tree_util.keystr(p) for p, x in got if not np.array_equal(x, wanted[p])}
        assert changed == afresh
        stats = state["state"]["batch_stats"]["bn1"]["mean"]
        before = learned["batch_stats"]["bn1"]["mean"]
        assert not np.allclose(stats, before) and np.abs(stats - before).max() < 1
    scratch = saved(tmp_path / "scratch", 1)["params"]["encoder"]["conv1"]["kernel"]
    assert np.abs(scratch - learned["params"]["conv1"]["kernel"]).max() > 0.01
    assert result(tmp_path / "scratch")["scratch"] and not result(tmp_path / "whole")["scratch"]


def test_it_continues_to_the_same_bits_and_only_itself(runs, tmp_path, capsys):
    folder = tmp_path / "w"
    here = (f"--workdir={folder}", "--config.checkpoint_every=4")
    assert run(runs / "0", *here) == 0
    whole, curve, found = saved(folder, 6), losses(folder), result(folder)
    shutil.rmtree(folder / "checkpoints" / "6")
    assert run(runs / "0", *here) == 0
    assert tree.fingerprint(saved(folder, 6)) == tree.fingerprint(whole)
    assert losses(folder) == curve and result(folder) == found
    assert run(runs / "0", *here) == 0  # finished: judged again
    assert losses(folder) == curve and result(folder) == found
    job = json.loads((folder / "job.json").read_text())  # one that is older than some fields
    for young in ("step", "encoder", "dtype", "recipe"):
        del job["config"][young]
    del job["config"]["data"]["range"], job["config"]["mixing"]["group"]
    (folder / "job.json").write_text(json.dumps(job))
    assert run(runs / "0", *here) == 0
    capsys.readouterr()
    assert run(runs / "0", *here, "--config.dtype=bfloat16") == 2
    assert "differs in dtype" in capsys.readouterr().err
    for other, name in (
        (("--config.seed=5",), "seed"),
        (("--config.train_examples=400",), "train"),
    ):
        assert run(runs / "0", *here, *other) == 2
        assert f"differs in {name}" in capsys.readouterr().err
    assert run(runs / "1", *here) == 2
    assert "differs in run" in capsys.readouterr().err
    assert saved(folder, 6) is not None and result(folder) == found


@pytest.mark.long
def test_a_fine_tuning_of_a_fine_tuning_is_the_network_that_was_trained(tmp_path):
    """What the second leaves open is as in the first, not as in the pretraining."""
    run_of = [a for a in tiny_run.arguments(tmp_path / "run") if not a.startswith("--config.model")]
    model = ("--config.model.width=8", "--config.model.depth=1", "--config.model.heads=2")
    run_of = ["--config=configs/mae.py:digits", *run_of[1:], *model, "--config.steps=2"]
    assert tiny_run.main.main([*run_of, "--config.recipe=keep"]) == 0
    small = ("--config.batch=32", "--config.steps=2", "--config.train_examples=64")
    first, second = tmp_path / "first", tmp_path / "second"
    pool = "--config.model.pool=token"
    assert run(tmp_path / "run", *small, pool, f"--workdir={first}") == 0
    assert run(first, *small, f"--workdir={second}") == 0
    assert run(first, *small, f"--workdir={second}") == 0  # and it continues
    found = encoder.restore(second, layout.mesh())
    assert found.encoder.network.pool == "token"
    assert run(first, *small, "--config.encoder=classifier", f"--workdir={tmp_path}/third") == 2


def test_fields_younger_than_a_fine_tuning_mean_what_it_did():
    before = {"data": {"source": "digits"}, "mixing": {"mixup": 0.8}, "steps": 6}
    whole = start.completed(before, "bfloat16", "refuse")
    assert whole["mixing"] == {"mixup": 0.8, "group": 0} and whole["dtype"] == "bfloat16"
    now = {**whole, "mixing": {"mixup": 0.0, "group": 4}, "dtype": "float32"}
    assert start.completed(now, "bfloat16", "keep") == now


def test_it_is_not_continued_from_another_run_in_the_same_folder(runs, tmp_path, capsys):
    """As after --overwrite: the folder of the fine-tuning is left, its run is another."""
    shutil.copytree(runs / "0", tmp_path / "run")
    assert run(tmp_path / "run") == 0
    for name in ("config.json", "checkpoints"):
        there, other = tmp_path / "run" / name, runs / "1" / name
        shutil.rmtree(there) if there.is_dir() else there.unlink()
        (shutil.copytree if other.is_dir() else shutil.copy)(other, there)
    capsys.readouterr()
    assert run(tmp_path / "run") == 2
    assert "differs in seed of the run" in capsys.readouterr().err


def test_few_labels_of_several_runs(runs, tmp_path, capsys):
    """40 labels fill a batch of 64, and every run and share has a folder of its own."""
    both = f"{runs / '0'},{runs / '1'}"
    assert run(both, "--config.labels=0.1", f"--workdir={tmp_path}", "--config.split=holdout") == 0
    found = result(tmp_path)
    assert [r["train_examples"] for r in found["runs"]] == [50, 50]
    assert set(found["over_runs"]["finetune_top1"]) == {"mean", "sd"}
    for seed in "01":
        folder = runs / seed / "finetune_0.1_holdout"
        assert result(folder)["judged_on"] == "holdout" and len(losses(folder)) == 6
    assert "finetune_0.1_holdout of 2 runs" in capsys.readouterr().out


def test_the_labels_that_are_asked_for():
    labels = np.array([0, 1, -1, 1, 0, -1, 1, 0, 1])
    blank = np.zeros((1, 1, 1), np.uint8)

    def source(labels):
        def read(rows):
            image = np.broadcast_to(blank, (len(rows), 1, 1, 1))
            return {"image": image, "index": rows, "label": labels[rows].astype(np.int32)}

        return Source("a set", len(labels), 2, image(1, 1), read, list)

    part = representation.Part(source(labels), np.arange(1, 9))
    assert plan.labelled_rows(part, 1.0, None, 0).tolist() == [1, 3, 4, 6, 7, 8]
    whole = representation.Part(source(np.abs(labels)), np.arange(1, 9))
    assert plan.labelled_rows(whole, 1.0, None, 0).tolist() == list(range(1, 9))
    for rows in (
        plan.labelled_rows(part, 0.5, None, 0),  # half of two zeros, half of four ones
        plan.labelled_rows(part, 1.0, 1, 0),
    ):
        assert sorted(labels[rows].tolist()) in ([0, 1, 1], [0, 1])
    with pytest.raises(UserError, match="no training row has a label"):
        plan.labelled_rows(representation.Part(source(labels * 0 - 1), part.rows), 1.0, None, 0)


def test_every_training_has_a_folder_of_its_own():
    config, _ = configs.load("configs/finetune.py")
    names = [finetune.job_name(config)]
    for field, value in (("labels", 0.1), ("labels_seed", 2), ("scratch", True)):
        config[field] = value
        names.append(finetune.job_name(config))
    config.labels, config.shots = 1.0, 5
    names.append(finetune.job_name(config))
    assert names == [
        "finetune",
        "finetune_0.1",
        "finetune_0.1_draw2",
        "finetune_scratch_0.1_draw2",
        "finetune_scratch_5shot_draw2",
    ]


@pytest.mark.long
def test_fixed_positions_are_where_learned_ones_begin():
    config, _ = configs.load("configs/finetune.py:mae_vit_base")
    fields = {"name": "vit", "size": 8, "patch": 4, "width": 8, "depth": 1, "heads": 2}
    fixed, learned = (models.make({**fields, "positions": p}) for p in ("sincos_mae", "learned"))
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    variables = jax.jit(fixed.init)(jax.random.key(1), x)
    opened = types.SimpleNamespace(
        restored=types.SimpleNamespace(
            variables=variables, encoder=types.SimpleNamespace(network=fixed)
        ),
        mesh=layout.mesh(),
    )
    params = start.with_positions(config, opened)
    shapes = jax.eval_shape(learned.init, jax.random.key(1), x)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda p: p.shape, shapes)
    np.testing.assert_allclose(learned.apply({"params": params}, x), fixed.apply(variables, x))
    config.model.positions = None
    assert start.with_positions(config, opened) is variables["params"]


@pytest.mark.long
def test_a_vit_drops_the_same_paths_on_any_devices():
    """DropPath, λ of every image, erasing and crops: all noise belongs to the example."""
    losses = {}
    for rate in (0.0, 0.5):
        fields = {"name": "vit", "size": 8, "patch": 4, "width": 8, "depth": 2, "heads": 2}
        model = models.make(fields | {"drop_path": rate, "pool": "mean"})
        policy = augment.make("supervised", 8, mean=(0.5,), std=(0.5,))
        mixing = Mixing(mixup=0.8, cutmix=1.0, mode="elem")
        recipe = supervised.Recipe(policy, augment.Fixed(8), Erasing(0.5), mixing, 0.1, "torch")
        method = supervised.make(model, 3, recipe)
        generator = np.random.default_rng(0)
        images = generator.integers(0, 256, (16, 10, 10, 1)).astype(np.uint8)
        batch = {"image": images, "label": generator.integers(0, 3, 16).astype(np.int32)}
        key = jax.random.key(0)

        def step(state, batch, axis, method=method, key=key):
            ctx = Context(jnp.int32(0), jnp.int32(0), jnp.zeros(()), key, axis)
            views = method.views(key, jax.tree.map(lambda x: x[0], batch), ctx)
            return state, collectives.pmean(method.loss(*state, views, ctx)[0], axis)

        state = jax.jit(method.init)(key, {"image": jnp.zeros((2, 8, 8, 1))})
        split = jax.tree.map(lambda x: x[None], batch)
        losses[rate] = float(jax.jit(functools.partial(step, axis=None))(state, split)[1])
        mesh = layout.mesh()
        four = mapping.compile_step(step, mesh)(state, layout.put_batch(split, mesh))[1]
        np.testing.assert_allclose(four, losses[rate], rtol=1e-5)
    assert abs(losses[0.0] - losses[0.5]) > 1e-4, "no path was dropped"


def test_a_loss_that_is_not_finite_stops(runs, tmp_path, capsys):
    huge = ("--config.optimizer.learning_rate=1e30", "--config.optimizer.warmup_fraction=0.0")
    assert run(runs / "0", *huge, f"--workdir={tmp_path}") == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert "not finite" in err[-1] and err[-1].startswith("error:") and "Traceback" not in err
    assert not (tmp_path / "result.json").exists()
    assert run(runs / "0", f"--workdir={tmp_path}") == 0, "nothing was saved: it may begin again"


@pytest.mark.parametrize(
    "more, message",
    [
        (("--config.labels=0.0",), "must be above 0"),
        (("--config.layer_decay=2.0",), "at most 1"),
        (("--config.mixing.mode=pair",), "Known: batch, elem"),
        (("--config.mixing.group=3",), "mixing.group is 3; it must be even, or 0"),
        (("--config.head=zero",), "Did you mean zeros?"),
        (("--config.steps=0",), "above 0"),
        (("--config.shots=3", "--config.labels=0.5"), "--config.labels is then 1"),
        (("--config.model.drop_path=0.1",), "no such field"),
        (("--config.fresh=('nothing',)",), "no parameter that fits 'nothing'"),
        (("--config.fresh=('(',)",), "no regular expression"),
        (("--config.batch=66",), "multiple of 4"),
        (("--config.batch=60", "--config.mixing.mixup=1.0"), "in pairs; choose a multiple of 8"),
        (("--workdir={0}",), "holds a pretraining run"),
    ],
)
def test_a_mistake_is_one_line(runs, capsys, more, message):
    more = [m.format(runs / "0") for m in more]
    before = (runs / "0" / "result.json").read_bytes()
    assert run(runs / "0", *more) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert (runs / "0" / "result.json").read_bytes() == before


def test_the_loss_by_hand():
    """Cross-entropy of head(encoder(x)) with batch statistics, mean over rows."""
    model = models.make({"name": "resnet", "blocks": (1,), "width": 4, "stem": "small"})
    recipe = supervised.Recipe(None, augment.Fixed(8), None, Mixing(), 0.1, "torch")
    method = supervised.make(model, 3, recipe)
    x = jax.random.normal(jax.random.key(0), (6, 8, 8, 1))
    labels = jnp.asarray([0, 1, 2, 0, 1, -1])
    views = {"image": x, "target": soft_targets(labels, 3, 0.1), "label": labels}
    params, state = jax.jit(method.init)(jax.random.key(1), views)
    ctx = Context(jnp.int32(0), jnp.int32(0), jnp.zeros(()), jax.random.key(2), None)
    graded = jax.value_and_grad(lambda p: method.loss(p, state, views, ctx), has_aux=True)
    (value, (after, metrics)), grads = jax.jit(graded)(params)
    variables = {"params": params["encoder"], **state}
    features, _ = model.apply(variables, x, train=True, mutable=["batch_stats"])
    scores = np.asarray(features) @ params["head"]["kernel"] + params["head"]["bias"]
    log = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    expected = 0.0
    for i, label in enumerate([0, 1, 2, 0, 1]):  # the row without label adds nothing
        target = np.full(3, 0.1 / 3)
        target[label] += 0.9
        expected -= (target * log[i]).sum() / 6
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert metrics["train_top1"] == np.mean(scores.argmax(1) == np.asarray(labels))
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads["head"]))
    assert np.abs(grads["encoder"]["conv1"]["kernel"]).max() > 0
    assert not np.allclose(
        after["batch_stats"]["bn1"]["mean"], state["batch_stats"]["bn1"]["mean"], atol=1e-4
    )


def test_the_presets_are_the_official_numbers():
    def rates(config, group, steps_per_epoch, total):
        fields = optimizers.FIELDS | config.optimizer.to_dict()
        if group == "head" and config.head_learning_rate is not None:
            fields["learning_rate"] = config.head_learning_rate
        rate = schedules.make(fields, config.batch, steps_per_epoch, total)
        return lambda epoch: float(rate(round(epoch * steps_per_epoch)))

    presets = configs.load_module("configs/finetune.py").PRESETS
    made = {name: make() for name, make in presets.items()}
    for config in made.values():
        check.check(config)
    mae = rates(made["mae_vit_base"], "encoder", 1251, 125_100)
    assert [mae(e) for e in (0, 2, 5, 100)] == pytest.approx([0, 8e-4, 2e-3, 1e-6])
    assert mae(52.5) == pytest.approx((2e-3 + 1e-6) / 2, rel=1e-4)
    for name, trunk, head in (("1pct", 0.02, 5.0), ("10pct", 0.01, 0.2)):
        config = made[f"resnet50_semi_{name}"]
        for group, peak in (("encoder", trunk), ("head", head)):
            rate = rates(config, group, 50, 1000)
            got = [rate(e) for e in (0, 11.9, 12, 16)]
            assert got == pytest.approx([peak, peak, peak / 5, peak / 25])
        assert config.optimizer.weight_decay == 0 and config.batch == 256

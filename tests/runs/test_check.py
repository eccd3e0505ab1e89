"""What is refused before data and devices are touched, and the line that says so."""

import pytest
from ml_collections import ConfigDict

from ssl_jax.errors import UserError
from ssl_jax.optim import schedules
from ssl_jax.runs import check, recipe
from ssl_jax.runs import config as configs


def digits(**changes):
    config, _ = configs.load("simclr:digits")
    with config.ignore_type():  # as a file of one's own may have it
        config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batch", 0, "--config.batch is 0; it must be at least 1"),
        ("batch", 2.5, "--config.batch is 2.5; it must be a whole number"),
        ("accumulate", 3, "not a multiple of"),
        ("parallel", "shardmap", "Did you mean shard_map"),
        ("steps", -1, "--config.steps is -1; it must be above 0"),
        ("epochs", 0.0, "--config.epochs is 0.0; it must be above 0"),
        ("data.fit", "crops", "Did you mean crop"),
        ("data.max_bad", 1.5, "from 0 to 1"),
        ("evaluate.crop_fraction", 0.0, "above 0, at most 1"),
        ("evaluate.size", 0, "--config.evaluate.size is 0"),
        ("evaluate.std", (0.0,), "--config.evaluate.std"),
        ("evaluate.test_examples", 0, "at least 1"),
        ("monitor.test_examples", 0, "--config.monitor.test_examples is 0"),
        ("monitor.every_steps", -1, "--config.monitor.every_steps is -1; it must be at least 0"),
        ("checkpoint.every_steps", -5, "at least 0"),
        ("checkpoint.keep", 0, "at least 1"),
        ("optimizer.learning_rate", -0.1, "--config.optimizer.learning_rate"),
        ("optimizer.warmup_fraction", float("nan"), "at least 0"),
        ("recipe", "half", "Known: keep, refuse, tenth"),
    ],
)
def test_a_value_that_cannot_be_right_is_named(field, value, message):
    with pytest.raises(UserError, match=message) as error:
        check.pretraining(digits(**{field: value}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(bacth=3), "a field 'bacth'. Did you mean batch?"),
        (lambda c: c.data.update(sise=3), "a field data.sise. Did you mean size?"),
        (lambda c: c.__delitem__("optimizer"), "no field 'optimizer'"),
        (lambda c: c.data.__delitem__("fit"), "no field data.fit"),
        (lambda c: c.views.__setitem__("both", ConfigDict()), "views.both is no augmentation"),
    ],
)
def test_fields_of_an_own_file(change, message):
    config = digits()
    with config.unlocked():
        change(config)
    with pytest.raises(UserError, match=message):
        check.pretraining(config)


def test_views_that_enlarge_the_stored_picture_are_said():
    assert check.remarks(digits()) == []
    config = digits(**{"data.size": 16})
    (line,) = check.remarks(config)
    assert line.startswith("--config.views.both.size=20, --config.evaluate.size=28: larger than")


def test_monitors_and_checkpoints_that_seldom_meet_are_said():
    """Only a checkpoint that a monitor has seen can be the best."""
    assert (
        check.remarks(digits(**{"monitor.every_steps": 300, "checkpoint.every_steps": 100})) == []
    )
    assert check.remarks(digits(**{"monitor.every_steps": 0, "checkpoint.every_steps": 100})) == []
    (line,) = check.remarks(digits(**{"monitor.every_steps": 250, "checkpoint.every_steps": 100}))
    assert "meet every 500 steps" in line


def test_a_field_of_another_type():
    config = ConfigDict({**digits().to_dict(), "batch": "64"}, convert_dict=True)
    with pytest.raises(UserError, match="--config.batch is '64'; it must be a number"):
        check.pretraining(config)


def test_a_workdir_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot make .*choose another --workdir"):
        check.writable(tmp_path / "file" / "run")


def test_a_recipe_as_long_as_the_run():
    config = digits(**{"optimizer.warmup_epochs": 10.0, "optimizer.freeze_epochs": 1.0})
    assert recipe.fit(config, 10.5) == (config, [])
    with pytest.raises(UserError, match=r"--config.optimizer.warmup_epochs=10: as long as the run"):
        recipe.fit(config, 10.0)
    config.recipe = "keep"
    kept, lines = recipe.fit(config, 2.0)
    assert kept is config and len(lines) == 1 and "kept" in lines[0]
    config.recipe = "tenth"
    fitted, lines = recipe.fit(config, 2.0)
    assert fitted.optimizer.warmup_epochs == 0.2 and fitted.optimizer.freeze_epochs == 0.2
    assert config.optimizer.warmup_epochs == 10.0, "the run's own config says what was asked for"
    assert len(lines) == 1 and "at most a tenth" in lines[0]


def test_a_delay_and_the_warm_up_after_it_count_together():
    config = digits(**{"optimizer.delay_epochs": 5.0, "optimizer.warmup_epochs": 5.0})
    config.optimizer.warmup_fraction = 0.0
    assert recipe.fit(config, 10.5) == (config, [])
    with pytest.raises(UserError, match="delay_epochs=5, --config.optimizer.warmup_epochs=5: as"):
        recipe.fit(config, 8.0)


def test_freezes_of_groups_and_delays_of_methods_are_durations():
    config, _ = configs.load("swav:imagenet")
    found = recipe.durations(config)
    assert found["method.queue_epoch"] == config.method.queue_epoch
    assert found["optimizer.groups.prototypes.freeze_epochs"] > 1
    config.recipe = "tenth"
    fitted, _ = recipe.fit(config, 1.0)
    assert fitted.optimizer.groups.prototypes.freeze_epochs == 0.1
    assert fitted.method.queue_epoch == 0


def test_milestones_beyond_the_end_are_said():
    config = digits(**{"optimizer.milestones": (3.0, 30.0)})
    _, lines = recipe.fit(config, 20.0)
    assert len(lines) == 1 and "never drops at epoch 30" in lines[0]


def test_presets_fit_their_own_runs():
    for name in ("simclr:cifar10", "dino:digits", "swav:digits", "deepcluster_v2:digits"):
        config, _ = configs.load(name)
        assert recipe.fit(config, config.epochs)[0] is config


def test_steps_are_counted_in_whole_batches_or_in_examples():
    """SimCLR's of ImageNet at batch 4,096: 1,281,167 · 100 // 4,096 + 1, 3,127 of them warm up."""
    config, _ = configs.load("simclr:imagenet")
    n = 1_281_167
    assert (config.epochs, config.batch, config.epochs_in) == (100.0, 4096, "examples")
    assert recipe.total_steps(config, n) == 31_279
    counted, per_epoch = recipe.warmed_up_in_examples(config, n), n // 4096
    assert schedules.warmup_steps(counted.optimizer, per_epoch, 31_279) == 3_127
    config.epochs_in = "batches"
    assert recipe.total_steps(config, n) == 100 * 312
    assert schedules.warmup_steps(config.optimizer, per_epoch, 31_200) == 3_120
    config.steps = 7
    assert recipe.total_steps(config, n) == 7
    config.epochs_in = "passes"
    with pytest.raises(UserError, match="epochs_in is 'passes'.*batches, examples"):
        check.fields(config)

"""Configs: every file and preset loads and is consistent; differences and mistakes are named."""

import pathlib

import pytest

from ssl_jax.errors import UserError
from ssl_jax.methods import METHODS
from ssl_jax.runs import config as configs

FILES = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))


def presets(file):
    return list(getattr(configs.load_module(str(file)), "PRESETS", {})) or [""]


ALL = [(f"configs/{f.name}", preset) for f in FILES for preset in presets(f)]


@pytest.mark.parametrize(("file", "preset"), ALL)
def test_every_preset_loads_says_how_to_run_it_and_survives_json(file, preset):
    config, name = configs.load(f"{file}:{preset}" if preset else file)
    stem = pathlib.Path(file).stem
    assert name.startswith(stem)
    assert not configs.differences(config, configs.from_json(configs.to_json(config)))
    text = configs.load_module(file).__doc__
    assert f"python -m ssl_jax.main --config {file}" in text
    assert "Expected" in text
    if config.job == "pretrain":
        configs.check(config)
        assert config.method.name in METHODS
        assert set(config) == set(configs.defaults()) | {"optimizer"}


def test_the_first_preset_is_the_default():
    chosen, name = configs.load("configs/simclr.py")
    first = next(iter(configs.load_module("configs/simclr.py").PRESETS))
    assert name == f"simclr_{first}"
    assert not configs.differences(chosen, configs.load(f"configs/simclr.py:{first}")[0])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("configs/simclrr.py", "Did you mean configs/simclr.py"),
        ("configs/simclr.py:imagnet", "has no preset 'imagnet'. Did you mean imagenet"),
        ("nowhere/x.py", "there is no file nowhere/x.py"),
    ],
)
def test_a_wrong_file_or_preset_is_named(argument, message):
    with pytest.raises(UserError, match=message) as error:
        configs.load(argument)
    assert "\n" not in str(error.value)


def test_a_broken_config_file_is_one_line(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_that_name\n")
    with pytest.raises(UserError, match="broken.py cannot be imported: ModuleNotFoundError"):
        configs.load(str(broken))
    broken.write_text("x = 1\n")
    with pytest.raises(UserError, match="has no function get_config"):
        configs.load(str(broken))


def test_only_what_changes_the_numbers_differs():
    a, b = configs.defaults(), configs.defaults()
    b.workdir, b.log_every, b.parallel, b.cpu_devices = "w", 1, "jit", 3
    b.monitor.every_steps = b.checkpoint.every_steps = b.data.ahead = 7
    assert configs.differences(a, b) == []
    b.seed, b.data.size, b.evaluate.mean = 1, 32, (0.5,)
    assert configs.differences(a, b) == ["data.size", "evaluate.mean", "seed"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batch", 0, "--config.batch is 0"),
        ("accumulate", 3, "not a multiple of"),
        ("parallel", "shardmap", "Did you mean shard_map"),
        ("steps", -1, "must be above 0"),
        ("data.channels", 4, "must be 1 or 3"),
    ],
)
def test_a_value_that_cannot_be_right_is_named(field, value, message):
    config = configs.defaults()
    config.epochs = 1.0
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        configs.check(config)

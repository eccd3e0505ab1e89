"""Configs: every file and preset loads and is consistent; differences and mistakes are named."""

import pathlib

import pytest

from ssl_jax.errors import UserError
from ssl_jax.methods import METHODS
from ssl_jax.runs import check
from ssl_jax.runs import config as configs

FOLDER = pathlib.Path(__file__).parents[2] / "configs"
FILES = [f for f in sorted(FOLDER.glob("*.py")) if f.stem != "common"]  # which is no config


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
        check.pretraining(config)
        assert config.method.name in METHODS
        assert set(config) == set(configs.defaults()) | {"optimizer"}


def test_no_file_loads_the_preset_of_another_method(monkeypatch):
    """A change to a preset of SimCLR is a change to SimCLR alone."""
    load, loaded = configs.load, []
    monkeypatch.setattr(configs, "load", lambda name: loaded.append(name) or load(name))
    for file in METHODS:
        for preset in configs.load_module(file).PRESETS.values():
            preset()
        assert not loaded, f"configs/{file}.py loads {loaded}"


def test_a_method_has_the_fields_that_its_file_names():
    common = configs.load_module("common")
    changed = common.method("simclr", temperature=0.2)
    assert changed.temperature == 0.2 and changed.loss_scale == 1.0
    with pytest.raises(KeyError, match="simclr has no field temprature"):
        common.method("simclr", temprature=0.2)


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
        ("simclrr:digits", "there is no config simclrr. Did you mean simclr"),
        ("simclr:imagnet", "simclr has no preset 'imagnet'. Did you mean imagenet"),
        (
            "configs/simclr:digits",
            "there is no file configs/simclr. Did you mean configs/simclr.py",
        ),
        ("quickstart.py", "there is no file quickstart.py. Did you mean configs/quickstart.py"),
        ("knn:digits", "knn has no presets; write --config knn"),
        ("nowhere/x.py", "there is no file nowhere/x.py"),
    ],
)
def test_a_wrong_file_or_preset_is_named(argument, message):
    with pytest.raises(UserError, match=message) as error:
        configs.load(argument)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("folder", [".", "elsewhere"])
@pytest.mark.parametrize(
    ("argument", "like", "name"),
    [
        ("simclr:digits", "configs/simclr.py:digits", "simclr_digits"),
        ("simclr", "configs/simclr.py:imagenet", "simclr_imagenet"),
        ("quickstart", "configs/quickstart.py", "quickstart"),
        ("./configs/simclr.py:digits", "configs/simclr.py:digits", "simclr_digits"),
    ],
)
def test_a_name_and_a_path_are_the_same_config_anywhere(
    folder, argument, like, name, tmp_path, monkeypatch
):
    expected = configs.load(like)[0]
    if folder != ".":
        monkeypatch.chdir(tmp_path)
    for each in (argument, like):
        config, called = configs.load(each)
        assert called == name and not configs.differences(config, expected)


OWN = """
from ssl_jax.runs import config as configs

def digits():
    c, _ = configs.load("simclr:digits")
    c.seed = 7
    return c

PRESETS = {"digits": digits}

def get_config(preset="digits"):
    return PRESETS[preset]()
"""


def test_own_files_win_by_path_and_never_by_name(tmp_path, monkeypatch):
    for file in ("my/own.py", "configs/simclr.py", "simclr.py", "own:2/own.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(OWN)
    monkeypatch.chdir(tmp_path)
    for argument in ("my/own.py:digits", "own:2/own.py", "own:2/own.py:digits", "simclr.py"):
        assert configs.load(argument)[0].seed == 7
    assert configs.load("my/own.py:digits")[1] == "own_digits"
    assert configs.load(f"{tmp_path}/my/own.py:digits")[0].seed == 7
    assert configs.load("configs/simclr.py:digits")[0].seed == 7
    assert configs.load("simclr:digits")[0].seed == 0
    assert configs.load("byol:digits")[0].seed == 0, "configs of ssl_jax build on those of ssl_jax"
    with pytest.raises(UserError, match="Did you mean my/own.py"):
        configs.load("my/owm.py")
    with pytest.raises(UserError, match="Did you mean own.py"):
        (tmp_path / "own.py").write_text(OWN)
        configs.load("own")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_that_name", "cannot be imported: ModuleNotFoundError.*line 1"),
        ("x = 1\ny = (", r"cannot be imported: SyntaxError.*\(broken.py, line 2\)"),
        ("x = 1", "has no function get_config"),
        ("def get_config(): return 1 / 0", "get_config of .* fails: ZeroDivisionError.*line 1"),
        ("def get_config(): pass", "returns no config"),
    ],
)
def test_a_broken_config_file_is_one_line(text, message, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text(text + "\n")
    with pytest.raises(UserError, match=message) as error:
        configs.load(str(broken))
    assert "\n" not in str(error.value)


def test_a_file_without_get_config_can_be_shared_by_others(tmp_path):
    (tmp_path / "common.py").write_text("RATE = 0.5\n")
    assert configs.load_module(str(tmp_path / "common.py")).RATE == 0.5


def test_only_what_changes_the_numbers_differs():
    a, b = configs.defaults(), configs.defaults()
    b.workdir, b.log_every, b.parallel, b.cpu_devices = "w", 1, "jit", 3
    b.monitor.every_steps = b.checkpoint.every_steps = b.data.ahead = 7
    assert configs.differences(a, b) == []
    b.seed, b.data.size, b.evaluate.mean = 1, 32, (0.5,)
    assert configs.differences(a, b) == ["data.size", "evaluate.mean", "seed"]

"""A run that is older than a field means what it meant."""

import json

import numpy as np
import pytest
from kit import tiny_run
from ml_collections import ConfigDict

from ssl_jax.report import collect
from ssl_jax.runs import config as configs
from ssl_jax.runs import workdir
from ssl_jax.train import past


def without(config, *names):
    """A config without some fields, by their dotted names."""
    content = config.to_dict()
    for name in names:
        *sections, field = name.split(".")
        inner = content
        for section in sections:
            inner = inner[section]
        del inner[field]
    return ConfigDict(content)


def test_absent_fields_get_their_defaults_and_the_others_stay():
    config, _ = configs.load("simclr:digits")
    config.seed, config.data.ahead, config.method.temperature = 5, 9, 0.3
    young = (
        "method.encoder_rows",
        "method.chunk",
        "data.resident",
        "data.cache_bytes",
        "steps_at_once",
        "monitor",
        "optimizer.delay_epochs",
        "views.both.gray_first",
    )
    whole = past.complete(without(config, *young))
    assert configs.differences(whole, config) == []
    assert whole.monitor == configs.defaults().monitor
    assert whole.data.ahead == 9 and whole.method.temperature == 0.3
    again = past.complete(whole)
    assert configs.to_json(again) == configs.to_json(whole)


def test_nothing_is_put_into_what_a_field_holds():
    """A projector of other fields is another projector, not one that lacks some."""
    config, _ = configs.load("dcl:cifar10")
    assert set(past.complete(config).method.projector) == {"widths", "norms", "biases"}


@pytest.mark.parametrize("name", ["mine", None])
def test_of_an_unknown_method_only_the_rest_is_filled(name):
    config = without(configs.load("simclr:digits")[0], "method.chunk", "log_every")
    config.method.name = name
    whole = past.complete(config)
    assert whole.log_every == 10 and "chunk" not in whole.method


def test_a_config_without_its_data_is_not_filled():
    assert "data" not in past.complete(without(configs.load("simclr:digits")[0], "data"))


def test_a_run_from_before_its_fields_probes_and_continues_to_the_same_bits(tmp_path):
    words = ("--config.steps=4", "--config.checkpoint.every_steps=2")
    assert tiny_run.run(tmp_path, *words) == 0
    expected = json.loads((tmp_path / "result.json").read_text())
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    young = ("method.encoder_rows", "method.chunk", "data.resident", "optimizer.delay_epochs")
    old = without(ConfigDict(content["config"]), *young, "steps_at_once")
    file.write_text(json.dumps({**content, "config": json.loads(configs.to_json(old))}))
    assert tiny_run.probe("knn", tmp_path) == 0
    result = json.loads((tmp_path / "knn" / "result.json").read_text())
    assert result["step"] == 4 and np.isfinite(result["knn_top1"])
    shown = collect.run_of(tmp_path, None)
    assert shown.later["method.encoder_rows"] == 0 and "encoder_rows" not in shown.config["method"]

    (tmp_path / "result.json").unlink()
    for step in (tmp_path / "checkpoints").glob("4*"):
        step.rename(tmp_path / f"gone_{step.name}")
    assert tiny_run.run(tmp_path, *words) == 0
    again = json.loads((tmp_path / "result.json").read_text())
    assert again["resumed_at"] == 2 and again["fingerprint"] == expected["fingerprint"]
    assert workdir.read_config(tmp_path).config.method.encoder_rows == 0

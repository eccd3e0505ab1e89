"""Tokens to one vector, the whole road: no other room knows of the toy source and method."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from kit import tiny_run, toy_words

from ssl_jax import main
from ssl_jax.data import sources
from ssl_jax.devices import layout
from ssl_jax.evaluate import monitors
from ssl_jax.evaluate.features import encoder
from ssl_jax.logs import metrics
from ssl_jax.train import stopping

# A process of its own, with one device.
DRIVER = """
import sys
sys.path.insert(0, "tests")
from kit import toy_words
from ssl_jax import main
toy_words.register()
sys.exit(main.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module", autouse=True)
def known():
    with pytest.MonkeyPatch.context() as patch:
        toy_words.register(patch.setitem)
        yield


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "words.py"
    path.write_text(toy_words.CONFIG)
    return path


def run(file, folder, *more):
    return main.main([f"--config={file}", f"--workdir={folder}", *more])


def result(folder):
    return json.loads((folder / "result.json").read_text())


def losses(folder):
    return [r["loss"] for r in metrics.read(folder / "metrics.jsonl") if "loss" in r]


@pytest.fixture(scope="module")
def trained(file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("four")
    assert run(file, folder, "--config.cpu_devices=4") == 0
    return folder


def test_it_learns_is_probed_and_has_a_page(trained):
    found = result(trained)
    assert found["knn_top1"] > 0.6 and found["baselines"]["pixels"]["knn_top1"] > 0.25
    assert losses(trained)[-1] < losses(trained)[0]
    page = (trained / "report" / "index.html").read_text()
    assert "words" in page and "<html" in page


def test_one_device_and_streamed_batches_find_the_same(file, trained, tmp_path):
    plain = ("--config.report=False", "--config.monitor.every_steps=0")
    one = [f"--config={file}", f"--workdir={tmp_path / 'one'}", *plain, "--config.cpu_devices=1"]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *one],
        cwd=tiny_run.REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    assert "examples/s" in said and "training and" in said and "images" not in said
    more = ("--config.cpu_devices=4", "--config.data.resident=True")
    assert run(file, tmp_path / "resident", *plain, *more) == 0
    for name in ("one", "resident"):
        few = losses(tmp_path / name)
        np.testing.assert_allclose(few, losses(trained)[-len(few) :], rtol=1e-5)
    kept = encoder.restore(tmp_path / "one", layout.mesh()).variables
    other = encoder.restore(trained, layout.mesh()).variables
    np.testing.assert_allclose(kept["table"], other["table"], atol=1e-5)


def test_a_stop_and_a_restart_change_nothing(file, trained, tmp_path, monkeypatch):
    look = monitors.look

    def asked(*given):
        signal.raise_signal(signal.SIGTERM)  # at step 6
        return look(*given)

    with monkeypatch.context() as during:
        during.setattr(monitors, "look", asked)
        assert run(file, tmp_path, "--config.cpu_devices=4") == stopping.EXIT_STOPPED
    assert run(file, tmp_path, "--config.cpu_devices=4") == 0
    assert result(tmp_path)["fingerprint"] == result(trained)["fingerprint"]


def test_knn_of_its_encoder_and_of_the_words_as_they_are(trained, tmp_path):
    for features in ("learned", "pixels"):
        probe = ("--config=knn", f"--config.checkpoint={trained}", "--config.cpu_devices=4")
        assert main.main([*probe, f"--config.features={features}", f"--workdir={tmp_path}"]) == 0
        found = json.loads((tmp_path / "result.json").read_text())
        assert found["knn_top1"] > 0.6, features


def test_a_linear_probe_of_it_and_what_only_images_have(trained, tmp_path, capsys):
    def job(config, *more):
        given = (f"--config={config}", f"--config.checkpoint={trained}", f"--workdir={tmp_path}")
        return main.main([*given, "--config.cpu_devices=4", *more])

    assert job("linear") == 0
    assert json.loads((tmp_path / "result.json").read_text())["linear_top1"] > 0.6
    capsys.readouterr()
    assert job("linear:sgd", "--config.augment=True") == 2
    assert "draws views of images, and this encoder reads none" in capsys.readouterr().err
    assert job("linear", "--config.blocks=2") == 2
    assert "only a ViT has blocks to read" in capsys.readouterr().err
    assert job("finetune", "--config.steps=1") == 2
    assert "finetune trains a network on images" in capsys.readouterr().err


def test_a_vocabulary_that_changed_is_refused(file, trained, monkeypatch, capsys):
    def other(name, split, data):
        source = toy_words.open_words(name, split, data)
        facts = {**source.facts, "vocabulary": source.facts["vocabulary"][::-1]}
        return source._replace(facts=facts)

    monkeypatch.setitem(sources.KINDS, "words", toy_words.KIND._replace(open=other))
    (trained / "result.json").rename(trained / "kept.json")
    try:
        assert run(file, trained, "--config.cpu_devices=4") == 2
        said = capsys.readouterr().err
        assert "another vocabulary" in said and said.count("\n") == 1
    finally:
        (trained / "kept.json").rename(trained / "result.json")


def test_an_encoder_that_there_is_not(trained, capsys):
    probe = ("--config=knn", f"--config.checkpoint={trained}", "--config.encoder=word")
    assert main.main([*probe, "--config.cpu_devices=4"]) == 2
    assert "Did you mean words?" in capsys.readouterr().err

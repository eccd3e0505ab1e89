"""The linear job on finished runs of a ResNet and of a ViT."""

import json
import math

import pytest
from kit import tiny_run


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("linear") / "resnet"
    tiny_run.finished(folder)
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("linear") / "vit"
    small = (
        "--config.model.width=16",
        "--config.model.depth=2",
        "--config.model.heads=2",
        "--config.method.decoder.width=16",
        "--config.method.decoder.depth=1",
        "--config.method.decoder.heads=2",
        "--config.steps=2",
    )
    ours = [
        a for a in tiny_run.arguments(folder) if "config.model" not in a and "steps=12" not in a
    ]
    assert tiny_run.main.main(["--config=configs/mae.py:digits", *ours[1:], *small]) == 0
    return folder


def probe(checkpoint, folder, *more, preset="lbfgs"):
    """Runs the job; returns (exit code, result or None)."""
    code = tiny_run.probe("linear", checkpoint, f"--workdir={folder}", *more, preset=preset)
    file = folder / "result.json"
    return code, json.loads(file.read_text()) if file.is_file() else None


# The running statistics of BatchNorm begin at 0 and 1 and need some hundred steps to forget that.
SHORT = ("--config.sgd.batch=50", "--config.sgd.epochs=30")


def test_both_solvers(resnet, tmp_path):
    code, exact = probe(resnet, tmp_path / "exact")
    assert code == 0 and exact["solver"] == "lbfgs" and exact["features"] == "encoder"
    own = json.loads((resnet / "result.json").read_text())
    assert exact["linear_top1"] == own["linear_top1"]  # as the run itself measured it
    code, grid = probe(resnet, tmp_path / "grid", *SHORT, preset="sgd")
    assert code == 0 and grid["solver"] == "sgd" and grid["augmented"] is False
    assert len(grid["curve"]) == 28 and "C" not in grid
    assert abs(grid["linear_top1"] - exact["linear_top1"]) < 0.1


# LARS takes steps of a thousandth of the weight's length: few steps need a large rate.
@pytest.mark.parametrize(
    "preset, rates", [("moco", "(0.1, 1.0)"), ("simsiam", "(1.0, 1e3)"), ("mae", "(1.0, 1e3)")]
)
def test_presets_train(resnet, tmp_path, preset, rates):
    few = (*SHORT, f"--config.sgd.learning_rates={rates}")
    code, found = probe(resnet, tmp_path, *few, preset=preset)
    assert code == 0 and len(found["curve"]) == 2
    # Ten classes. (MoCo's features are as they are, here of a network that has hardly learned.)
    assert found["linear_top1"] > (0.12 if preset == "moco" else 0.2)
    assert min(row["cross_entropy"] for row in found["curve"]) < math.log(10)


def test_augmented_features_are_a_function_of_epoch_and_image(resnet, tmp_path):
    recipe = (*SHORT[:1], "--config.sgd.epochs=3", "--config.sgd.learning_rates=(0.1,)")
    plain = probe(resnet, tmp_path / "plain", *recipe, preset="sgd")[1]
    mild = ("--config.augment=True", "--config.crop_area=(0.5,1.0)", "--config.flip=0.0")
    code, found = probe(resnet, tmp_path / "augmented", *recipe, *mild, preset="sgd")
    assert code == 0 and found["augmented"] is True
    assert found["linear_top1"] > 0.2
    assert found["linear_top1"] != plain["linear_top1"]
    # The noise of an image is its own: a batch of another size sees the same views.
    again = probe(resnet, tmp_path / "again", *recipe, *mild, "--config.batch=128", preset="sgd")[1]
    assert abs(again["linear_top1"] - found["linear_top1"]) < 0.011  # two rows, for rounding


@pytest.mark.long
def test_blocks_of_a_vit(vit, tmp_path):
    own = probe(vit, tmp_path / "own")[1]
    for n, more in enumerate(
        (
            ("--config.blocks=2",),
            ("--config.blocks=1", "--config.average=True"),
            ("--config.blocks=2", "--config.average=True"),
        )
    ):
        code, found = probe(vit, tmp_path / str(n), *more)
        assert code == 0 and found["features"].startswith("class tokens of")
        assert ("mean of the patches" in found["features"]) == ("--config.average=True" in more)
        assert found["linear_top1"] > 0.2 and found["linear_top1"] != own["linear_top1"]
    code, found = probe(vit, tmp_path / "dino", "--config.blocks=2", *SHORT, preset="dino")
    assert code == 0 and found["features"] == "class tokens of 2 block(s)"


@pytest.mark.parametrize(
    "encoder, more, message",
    [
        ("resnet", ("--config.solver=sdg",), "Did you mean sgd?"),
        ("resnet", ("--config.augment=True",), "add --config.solver=sgd"),
        ("resnet", ("--config.blocks=4",), "only a ViT has blocks"),
        ("resnet", ("--config.average=True",), "only a ViT has blocks"),
        ("resnet", ("--config.solver=sgd", "--config.sgd.batch=600"), "lower --config.sgd.batch"),
        ("resnet", ("--config.sgd.optimizer=adam",), "sgd.optimizer"),
        ("resnet", ("--config.sgd.lr=1.0",), "has no field"),
        ("resnet", ("--config.holdout=0.0",), "--config.holdout is 0.0; it must be above 0"),
        ("resnet", ("--config.grid=(0.0,)",), "--config.grid is (0.0,); it takes numbers above 0"),
        ("resnet", ("--config.grid=()",), "--config.grid is ()"),
        ("resnet", ("--config.seed=-1",), "--config.seed is -1; it must be at least 0"),
        (
            "resnet",
            ("--config.solver=sgd", "--config.sgd.epochs=5", "--config.sgd.warmup_epochs=10.0"),
            "sgd.warmup_epochs=10 is as long as the training or longer",
        ),
        ("vit", ("--config.blocks=3",), "the encoder has 2 blocks"),
    ],
)
def test_a_mistake_is_one_line(request, tmp_path, capsys, encoder, more, message):
    run = request.getfixturevalue(encoder)
    capsys.readouterr()  # of the run, where it is made here
    code, _ = probe(run, tmp_path, *more)
    err = capsys.readouterr().err
    assert code == 2 and message in err and err.count("\n") == 1

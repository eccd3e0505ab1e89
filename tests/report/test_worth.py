"""Whether training paid, in words."""

import html
import pathlib

import pytest

from ssl_jax.report import page, worth
from ssl_jax.report import run as report
from ssl_jax.report.contents import Run


def result(knn, linear, pixels=(0.8, 0.9), untrained=(0.7, 0.95)):
    keys = ("knn_top1", "linear_top1")
    return {
        "steps": 10,
        "wall_seconds": 3.0,
        "images_per_second": 5.0,
        "knn_top1": knn,
        "linear_top1": linear,
        "baselines": {
            "pixels": dict(zip(keys, pixels, strict=True)),
            "untrained": dict(zip(keys, untrained, strict=True)),
        },
        "collapse": {"feature_std_ratio": 0.4, "effective_rank": 9.0, "alarm": None},
        "fingerprint": "abc",
    }


@pytest.mark.parametrize(
    "found, words",
    [
        (result(0.81, 0.96), None),
        (result(0.8, 0.95), None),  # as good is not below
        (result(None, None, (None, None), (None, None)), None),  # no labels
        ({}, None),
        (
            result(0.75, 0.96),
            "Training did not pay: kNN reaches 75.0 %, below 80.0 % of raw pixels.",
        ),
        (
            result(0.615, 0.92),
            "Training did not pay: kNN reaches 61.5 %, below 80.0 % of raw pixels and 70.0 % of "
            "the untrained encoder; the linear probe reaches 92.0 %, below 95.0 % of the "
            "untrained encoder.",
        ),
    ],
)
def test_training_that_did_not_pay_is_said(found, words):
    assert worth.warning(found) == words


def test_a_probe_that_failed_does_not_mean_that_there_are_no_labels():
    there = pathlib.Path("runs/a")
    none = result(None, None, (None, None), (None, None))
    assert report.text(none, there).startswith("no labels, so no accuracies")
    for failed in (
        result(None, 0.912),
        {**none, "problems": {"learned": "kNN: features are not finite"}},
    ):
        said = report.text(failed, there)
        assert "no labels" not in said and "learned features" in said
    assert "91.2%" in report.text(result(None, 0.912), there)


def test_what_could_not_be_measured_is_named():
    found = {"problems": {"learned": "a class has one image", "pixels": "no memory"}}
    assert worth.problems(found) == [
        "Could not be measured on the learned features: a class has one image",
        "Could not be measured on raw pixels: no memory",
    ]
    assert worth.problems({}) == [] == worth.problems({"problems": "x"})


def test_only_images_have_pixels():
    assert worth.baselines({"fields": ["tokens"]})["pixels"] == "raw data"
    for images in ({}, {"fields": ["image"]}, {"fields": 3}, {"fields": []}):
        assert worth.baselines(images)["pixels"] == "raw pixels"
    words = {**result(0.75, 0.96), "fields": ["tokens"]}
    assert worth.warning(words).endswith("below 80.0 % of raw data.")
    assert "raw data" in report.text(words, pathlib.Path("run"))


@pytest.mark.parametrize("knn", [0.75, 0.85])
def test_the_console_and_the_page_say_it(knn, tmp_path):
    found = result(knn, 0.96)
    words = worth.warning(found)
    config = {
        "seed": 0, "batch": 8, "method": {"name": "m"}, "model": {"name": "r"},
        "data": {"source": "digits"},
    }  # fmt: skip
    runs = [Run(n, n, config, 10, 5, [], found, 8, None, None) for n in "ab"]
    told = (report.text(found, pathlib.Path(tmp_path)), page.render(runs[:1]), page.render(runs))
    for text in map(html.unescape, told):
        assert (words in text) if words else ("did not pay" not in text)

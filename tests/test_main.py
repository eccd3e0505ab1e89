"""The command line: mistakes cost one clear line and exit code 2; help shows what there is."""

import pathlib

import pytest

from ssl_jax import main
from ssl_jax.methods import FIELDS, METHODS

DIGITS = ("--config", "configs/simclr.py:digits", "--config.cpu_devices=4")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--config.batch=4",), "which config?"),
        (("configs/quickstart.py",), "write --config configs/quickstart.py"),
        (("simclr:digits",), "write --config simclr:digits"),
        (("--workdir", "digits"), "start with --config quickstart"),
        (("--config",), "--config needs a name or a file"),
        (("--config", "quickstrt"), "no config quickstrt. Did you mean quickstart"),
        (("--config", "configs/quickstrt.py"), "Did you mean configs/quickstart.py"),
        (("--config", "configs/simclr.py:digit"), "Did you mean digits"),
        ((*DIGITS, "--config.bacth=4"), 'has no field bacth. Did you mean "batch"'),
        ((*DIGITS, "--config.data.sorce=x"), 'Did you mean "source"'),
        (
            (*DIGITS, "--config.batch=many"),
            "config.batch=many: invalid literal for int() with base",
        ),
        (
            (*DIGITS, "--config.method=byol"),
            "fields of its own, which are set one by one: --config.method.name=…",
        ),
        ((*DIGITS, "--config.data=folder:/x"), "one by one: --config.data.source=…"),
        (
            (*DIGITS, "--config.views.both", "simclrr"),
            "--config.views.both: unknown augmentation 'simclrr'",
        ),
        (
            (*DIGITS, "--config.views.both.size=0"),
            "--config.views.both.size is 0; it must be a whole",
        ),
        (
            (*DIGITS, "--config.model.width=0"),
            "--config.model.width is 0; it must be a whole number",
        ),
        ((*DIGITS, "--config.model.blocks=()"), "--config.model.blocks is ()"),
        ((*DIGITS, "--config.optimizer.groups.head.nme=x"), "no field nme. Did you mean name"),
        (
            (*DIGITS, "--config.optimizer.groups.head.name=frozen"),
            "optimizer.groups.head: the method has no such",
        ),
        ((*DIGITS, "--workdir=x", "--config.batch"), "Missing value"),
        ((*DIGITS, "--workdri=x"), "Did you mean: workdir"),
        ((*DIGITS, "batch=4"), "'batch=4' is not a flag"),
        ((*DIGITS, *DIGITS[:2]), "given 2 times"),
        ((*DIGITS, "--process=0"), "give all three"),
        ((*DIGITS, "--config.job=pretran"), "Did you mean pretrain"),
        ((*DIGITS, "--config.method.name=simclrr"), "Did you mean simclr"),
        ((*DIGITS, "--config.parallel=pmapp"), "Did you mean pmap"),
        ((*DIGITS, "--config.data.source=digit"), "Did you mean digits"),
        ((*DIGITS, "--config.data.source=folder:/no/such/place"), "/no/such/place"),
        ((*DIGITS, "--config.batch=5000"), "4000 images, fewer than --config.batch=5000"),
        ((*DIGITS, "--config.model.name=resnet19"), "Did you mean resnet18"),
        ((*DIGITS, "--config.optimizer.name=adam"), "Did you mean adamw"),
        (("--config", "configs/knn.py"), "which checkpoint?"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(argv, message, tmp_path, capsys):
    workdir = () if any("workd" in a for a in argv) else (f"--workdir={tmp_path / 'run'}",)
    assert main.main([*argv, *workdir]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.startswith("error: ")
    assert err.count("\n") == 1 and "Traceback" not in err
    assert not (tmp_path / "run").exists(), "a mistake leaves nothing behind"


def test_help_lists_jobs_methods_configs_with_presets_and_examples(capsys):
    assert main.main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in (*main.JOBS, *METHODS, "imagenet, cifar10, digits"):
        assert name in text
    for file in pathlib.Path("configs").glob("*.py"):
        assert (f"\n  {file.stem} " in text) == (file.stem != "common"), "which is no config"
    assert text.count("python -m ssl_jax.main --config ") == 4
    assert max(map(len, text.splitlines())) < 120, "wide terminals are not everyone's"


@pytest.mark.parametrize(
    "argv",
    [
        ["--help", "moco_v3"],
        ["--help", "configs/moco_v3.py:digits"],
        ["--config", "moco_v3", "--help"],
        ["--config=moco_v3", "-h"],
    ],
)
def test_help_about_a_config_has_its_text_presets_and_the_fields_of_its_method(argv, capsys):
    assert main.main(argv) == 0
    text = capsys.readouterr().out
    assert "MoCo v3: no queue" in text and "--config configs/moco_v3.py:imagenet\n" in text
    assert "\n  imagenet_vit_base   ViT-B/16" in text
    rows = {line.split()[0]: line for line in text.splitlines() if "--config.method." in line}
    assert set(rows) > {f"--config.method.{field.name}" for field in FIELDS["moco_v3"]}
    row = rows["--config.method.momentum"].split(maxsplit=2)
    assert row[1] == "0.99" and row[2].startswith("m of the target")
    assert rows["--config.method.predictor.norms"].endswith("('affine', 'none')")


def test_help_about_no_config_is_a_line(capsys):
    assert main.main(["--help", "moco_v4"]) == 2
    assert "Did you mean moco_v" in capsys.readouterr().err


def test_help_speaks_of_the_program_that_was_started(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["/not/on/the/path/ssl-jax"])
    assert main.main([]) == 0
    assert "\n  /not/on/the/path/ssl-jax --config quickstart\n" in capsys.readouterr().out

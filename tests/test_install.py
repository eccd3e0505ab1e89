"""What `pip install .` gives: a wheel in an environment of its own, used far from the checkout."""

import configparser
import fnmatch
import json
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile

import jax
import pytest
from kit import tiny_run
from packaging.requirements import Requirement

ROOT = tiny_run.REPOSITORY
NOT_SOURCE = (".*", "runs", "build", "dist", "*.egg-info")
QUICK = (
    "--config.steps=5",
    "--config.log_every=1",
    "--config.monitor.every_steps=0",
    "--config.monitor.train_examples=500",
    "--config.monitor.test_examples=200",
    "--config.evaluate.train_examples=500",
    "--config.evaluate.test_examples=200",
)


def command(*words, folder):
    """Runs a command in a folder; returns what it wrote.

    Without PYTHONPATH, by which a package could be found that is not installed.
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, f"{words}:\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel, built from the source distribution, built from a copy of the checkout."""

    def ignored(folder, names):
        at_top = [n for n in names if any(fnmatch.fnmatch(n, p) for p in NOT_SOURCE)]
        return {"__pycache__", *(at_top if pathlib.Path(folder) == ROOT else ())}

    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "copy", ignore=ignored)
    hook = "import sys, setuptools.build_meta as build; build.build_{}(sys.argv[1])"
    command(sys.executable, "-c", hook.format("sdist"), folder, folder=folder / "copy")
    (archive,) = folder.glob("ssl_jax-*.tar.gz")
    shutil.unpack_archive(archive, folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    command(sys.executable, "-c", hook.format("wheel"), folder, folder=unpacked)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of the programs of an environment that has the wheel and what it requires.

    What it requires is that of the interpreter of the tests, which is quicker than a download.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    bin = folder / "bin"
    pip = (sys.executable, "-m", "pip", "--python", bin / "python", "install", "--no-deps", "-q")
    command(*pip, "--no-index", wheel, folder=folder)
    packages = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = pathlib.Path(command(bin / "python", "-c", packages, folder=folder).strip())
    (packages / "required.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = "import ssl_jax, sys; print(ssl_jax.__file__, *sys.path, sep='\\n')"
    file, *path = command(bin / "python", "-c", where, folder=folder).splitlines()
    assert pathlib.Path(file).parent == packages / "ssl_jax" and str(ROOT) not in path
    return bin


@pytest.mark.long
def test_the_wheel_holds_every_source_file_and_no_other(wheel):
    source = {f.relative_to(ROOT) for f in (ROOT / "ssl_jax").rglob("*") if f.is_file()}
    expected = {str(f) for f in source if "__pycache__" not in f.parts}
    expected |= {f"ssl_jax/configs/{f.name}" for f in (ROOT / "configs").glob("*.py")}
    with zipfile.ZipFile(wheel) as archive:
        held = {n for n in archive.namelist() if ".dist-info/" not in n}
    assert held == expected


@pytest.mark.long
def test_it_learns_and_probes_outside_the_checkout(installed, tmp_path):
    cache = f"--config.compile_cache={jax.config.jax_compilation_cache_dir}"
    program = installed / "ssl-jax"
    text = command(program, "--help", folder=tmp_path)
    assert f"usage: {program} --config" in text
    for file in (ROOT / "configs").glob("*.py"):
        assert (f"\n  {file.stem} " in text) == (file.stem != "common"), "which is no config"

    text = command(program, "--config", "simclr:digits", *QUICK, cache, folder=tmp_path)
    run = tmp_path / "runs" / "simclr_digits"
    result = json.loads((run / "result.json").read_text())
    assert result["steps"] == 5 and 0 < result["knn_top1"] <= 1
    page = (run / "report" / "index.html").read_text()
    assert f"{program} --config knn --config.checkpoint=runs/simclr_digits" in page

    # The command that it printed, in a new process, and by the module's name.
    probe = f"{program} --config linear --config.checkpoint=runs/simclr_digits"
    assert probe in text
    module = f"{installed / 'python'} -m ssl_jax.main --config configs/knn.py"
    few = ("--config.train_examples=500", "--config.test_examples=200", cache)
    for words in (probe, probe.replace(f"{program} --config linear", module)):
        assert "top1" in command(*words.split(), *few, folder=tmp_path)


def test_the_pinned_versions_are_within_the_ranges():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")

    def requirements(text):
        lines = (line.partition("#")[0].strip() for line in text.splitlines())
        found = map(Requirement, filter(None, lines))
        return {r.name.lower().replace("_", "-"): r.specifier for r in found}

    for file, ranges in (
        ("requirements.txt", setup["options"]["install_requires"]),
        ("requirements-test.txt", setup["options.extras_require"]["test"]),
        ("requirements-tf.txt", setup["options.extras_require"]["tf"]),
    ):
        pinned, allowed = requirements((ROOT / file).read_text()), requirements(ranges)
        assert pinned.keys() == allowed.keys()
        for name, pin in pinned.items():
            (version,) = (p.version for p in pin if p.operator == "==")
            assert version in allowed[name], f"{name}=={version} is not in {allowed[name]}"

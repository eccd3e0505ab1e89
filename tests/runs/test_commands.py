"""Printed commands begin as the reader's own did."""

import pytest

from ssl_jax.runs import commands


@pytest.mark.parametrize(
    ("typed", "argv0", "on_path", "said"),
    [
        (["python", "-m", "ssl_jax.main", "--help"], "main.py", None, "python -m ssl_jax.main"),
        (["python3", "-m", "ssl_jax.main"], "main.py", None, "python3 -m ssl_jax.main"),
        (["my env/python", "-m", "ssl_jax"], "main.py", None, "'my env/python' -m ssl_jax.main"),
        (["/e/bin/python3", "-m", "pytest"], "pytest", None, "python -m ssl_jax.main"),
        (["/e/bin/python", "/e/bin/ssl-jax"], "/e/bin/ssl-jax", "/e/bin/ssl-jax", "ssl-jax"),
        (["/e/bin/python", "/e/bin/ssl-jax"], "/e/bin/ssl-jax", None, "/e/bin/ssl-jax"),
        (["/e/bin/python", "/e/bin/ssl-jax"], "/e/bin/ssl-jax", "/f/ssl-jax", "/e/bin/ssl-jax"),
    ],
)
def test_a_command_begins_as_the_readers_did(typed, argv0, on_path, said, monkeypatch):
    monkeypatch.setattr("sys.orig_argv", typed)
    monkeypatch.setattr("sys.argv", [argv0])
    monkeypatch.setattr("shutil.which", lambda name: on_path)
    assert commands.program() == said

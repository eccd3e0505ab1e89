"""The rooms of the package: each imports what is below it, and nothing above."""

import ast
import pathlib

import ssl_jax

# From the ground up. A room may import those before it in this list, and its own files.
ROOMS = (
    "errors",
    "contract",
    "devices",
    "processes",
    "checkpoints",
    "runs",
    "logs",
    "data",
    "augment",
    "models",
    "losses",
    "optim",
    "methods",
    "train",
    "evaluate",
    "exchange",
    "report",
    "jobs",
    "main",
    "__main__",
)
PACKAGE = pathlib.Path(ssl_jax.__file__).parent


def room(file: pathlib.Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(file: pathlib.Path) -> set[str]:
    """Rooms that a file imports, within functions as well."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "ssl_jax":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ssl_jax."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            found |= {name.split(".")[1] for name in names if name.startswith("ssl_jax.")}
    return found - {"__version__"}


def test_no_room_imports_one_above_it():
    files = [f for f in PACKAGE.rglob("*.py") if f != PACKAGE / "__init__.py"]
    assert {room(f) for f in files} <= set(ROOMS)
    upward = [
        f"{file.relative_to(PACKAGE)} imports {other}"
        for file in files
        for other in imported(file)
        if ROOMS.index(other) > ROOMS.index(room(file))
    ]
    assert not upward, upward

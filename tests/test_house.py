"""The rooms of the package: each imports what is below it, and nothing above."""

import ast
import pathlib
import re

import ssl_jax
from ssl_jax.methods import METHODS

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


# Words that name what a paper does elsewhere than in its method, and are values of fields there: a
# policy of augmentation and its colours and boxes, ways to begin with weights, the default config.
ALSO_WORDS = {
    "augment/color.py": {"byol"},
    "augment/geometry.py": {"byol"},
    "augment/pipeline.py": {"byol"},
    "augment/policies.py": {"byol", "mae", "moco_v1", "moco_v2", "simclr", "simsiam", "vicreg"},
    "models/linear.py": {"simclr"},
    "models/vit.py": {"dino", "mae"},
    "runs/config.py": {"simclr"},
    "train/supervised.py": {"mae"},
}


def methods_named(file: pathlib.Path) -> set[str]:
    """Methods that a file imports, or names in a string that is one word."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
        elif isinstance(node, ast.ImportFrom) and node.module == "ssl_jax.methods":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom | ast.Import):
            modules = [getattr(node, "module", None), *(alias.name for alias in node.names)]
            found |= {m.split(".")[2] for m in modules if (m or "").startswith("ssl_jax.methods.")}
    return found & set(METHODS)


def test_no_method_is_known_by_name_but_to_its_own_room():
    named = {
        str(file.relative_to(PACKAGE)): methods_named(file)
        for file in PACKAGE.rglob("*.py")
        if room(file) not in ("methods", "configs")
    }
    assert {file: names for file, names in named.items() if names} == ALSO_WORDS


def test_a_name_of_a_method_would_be_found(tmp_path):
    file = tmp_path / "page.py"
    file.write_text(
        "from ssl_jax.methods import swav\nfrom ssl_jax.methods.dino import make\n"
        "import ssl_jax.methods.vicreg\nif name == 'mae': pass\n"
    )
    assert methods_named(file) == {"swav", "dino", "vicreg", "mae"}


def test_documents_name_files_that_there_are():
    """Paths of ours in README, CONTRIBUTING, CHANGELOG and docs/: from the root, or from a room."""
    root = PACKAGE.parent
    tops = ("ssl_jax", "configs", "tests", "docs", "launch", "benchmarks")
    first = "|".join([*tops, *ROOMS])
    path = re.compile(rf"(?<![\w/.-])((?:{first})/[\w./-]*\.(?:py|md|sh|sbatch|yaml|png|npz))\b")
    absent, seen = [], 0
    for file in [*root.glob("*.md"), *(root / "docs").glob("*.md")]:
        for name in path.findall(file.read_text()):
            seen += 1
            base = root if name.split("/")[0] in tops else PACKAGE
            absent += [] if (base / name).exists() else [f"{file.name}: {name}"]
    assert seen > 100 and not absent

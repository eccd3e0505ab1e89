"""The benchmarks as text: short, apart from the tests, and there where the documents say so."""

import ast
import importlib
import pathlib
import re
import types

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LONGEST = 300  # lines of one file


def test_no_benchmark_is_long():
    files = (ROOT / "benchmarks").glob("*.py")
    lines = {file.name: len(file.read_text().splitlines()) for file in files}
    assert len(lines) > 20 and not {n: count for n, count in lines.items() if count > LONGEST}


def test_no_test_imports_a_benchmark():
    found = re.compile(r"^\s*(from|import) benchmarks\b", re.MULTILINE)
    files = [file for file in (ROOT / "tests").rglob("*.py") if found.search(file.read_text())]
    assert not files


@pytest.mark.parametrize("file", sorted(p.name for p in (ROOT / "benchmarks").glob("*.py")))
def test_what_a_benchmark_names_of_the_library_is_there(file):
    """They are run seldom: `module.name` of every module of ours that one imports."""
    tree = ast.parse((ROOT / "benchmarks" / file).read_text())
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ssl_jax"):
            parent = importlib.import_module(node.module)
            for alias in node.names:
                found = getattr(parent, alias.name, None)
                if found is None:
                    found = importlib.import_module(f"{node.module}.{alias.name}")
                if isinstance(found, types.ModuleType):
                    modules[alias.asname or alias.name] = found
    assigned = {
        n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = node.value.id
            if name in modules and name not in assigned:
                assert hasattr(modules[name], node.attr), f"{name}.{node.attr}, line {node.lineno}"


@pytest.mark.parametrize("file", sorted(p.name for p in (ROOT / "docs").glob("*.md")))
def test_benchmarks_in_the_documents_and_their_flags_exist(file):
    for name, rest in re.findall(
        r"python -m benchmarks\.(\w+)([^`\n#]*)", (ROOT / "docs" / file).read_text()
    ):
        script = (ROOT / "benchmarks" / f"{name}.py").read_text()
        harness = (ROOT / "benchmarks" / "harness.py").read_text()
        cases = (ROOT / "benchmarks" / "step_cases.py").read_text()
        own = rest.partition(" -- ")[0]
        for flag in re.findall(r"--[a-z][a-z-]*", own):
            assert f'"{flag}"' in script + harness + cases, f"{file}: {name} {flag}"

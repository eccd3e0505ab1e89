"""The benchmarks as text: short, apart from the tests, and there where the documents say so."""

import pathlib
import re

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

"""What docs/threat-model.md and docs/sandbox.md promise names tests, and those are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"


def rows(page: str, heading: str) -> list[tuple[str, ...]]:
    """Give the cells of each row of the page's tables that have this heading."""
    lines = (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()
    found, inside = [], False
    for line in lines:
        cells = tuple(cell.strip() for cell in line.strip("|").split("|"))
        if not line.startswith("|"):
            inside = False
        elif cells[0] == heading:
            inside = True
        elif inside and set(line) - set("|-: "):
            found.append(cells)
    return found


def names_in(file: Path) -> set[str]:
    """Give the tests of a file, those of a suite's classes that it runs too."""
    text = file.read_text(encoding="utf-8")
    found = {
        node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    return {name for name in found if name.startswith("test_")} | set(re.findall(r"class (Test\w+)\(", text))


def wrong(told: str, *, where: list[Path]) -> list[str]:
    """Name what is said to be a test and is none. `where` is looked into beside the files that are named."""
    files = [TESTS / name for name in re.findall(r"\b((?:unit|e2e|contract)/test_\w+\.py)", told)]
    missing = [str(file.relative_to(TESTS)) for file in files if not (file.exists() and names_in(file))]
    there = {name for file in [*files, *where] if file.exists() for name in names_in(file)}
    for name, cut in re.findall(r"`(test_\w+)(…?)`", told):
        if not any(one.startswith(name) if cut else one == name for one in there):
            missing.append(name)
    return missing if files or re.search(r"`test_\w+…?`", told) else [*missing, f"no test is named: {told!r}"]


PROMISES = rows("threat-model.md", "promised")
WAYS_OUT = rows("sandbox.md", "way out")
# What docs/sandbox.md names without its file.
WHERE = [
    *(TESTS / name for name in ("e2e/test_escapes.py", "e2e/test_sandbox_terminal.py", "unit/test_seccomp.py")),
    ROOT / "src" / "valetkey" / "testing" / "suites" / "sandboxes.py",
]


def test_the_search_finds_what_it_looks_for() -> None:
    here = [Path(__file__)]
    assert len(PROMISES) > 20
    assert len(WAYS_OUT) > 15
    assert wrong("`unit/test_threat_model.py`", where=[]) == []
    assert wrong("`unit/test_no_such.py`", where=[]) == ["unit/test_no_such.py"]
    assert wrong("`test_the_search…`, `test_the_search`", where=here) == ["test_the_search"]
    assert wrong("we looked", where=here) == ["no test is named: 'we looked'"]


@pytest.mark.parametrize("promise", PROMISES, ids=[str(number) for number in range(len(PROMISES))])
def test_each_promise_names_tests_that_are_there(promise: tuple[str, ...]) -> None:
    _, tests = promise
    assert wrong(tests, where=[]) == []


@pytest.mark.parametrize("way", WAYS_OUT, ids=[str(number) for number in range(len(WAYS_OUT))])
def test_each_way_out_names_tests_that_are_there(way: tuple[str, ...]) -> None:
    _, _, tests = way
    assert wrong(tests, where=WHERE) == []

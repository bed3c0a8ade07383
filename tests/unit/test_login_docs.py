"""docs/login.md is held to what is there: kinds, error codes, the setting, the calls of the SDK."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

import valetkey
from valetkey import errors
from valetkey.provider import AuthKind

TEXT = (Path(__file__).parents[2] / "docs" / "login.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
    assert found, f"docs/login.md has no section {title}"
    return found[1]


def first_cells(title: str) -> list[str]:
    rows = [line.split("|")[1] for line in section(title).splitlines() if line.startswith("| `")]
    return [name for cell in rows for name in re.findall(r"`([\w-]+)`", cell)]


def test_the_kinds_are_those_that_there_are() -> None:
    assert first_cells("The six kinds") == list(get_args(AuthKind))


@pytest.mark.parametrize("code", first_cells("What can go wrong"))
def test_the_codes_are_those_that_there_are(code: str) -> None:
    known = {getattr(errors, name).code for name in errors.__all__}
    assert code in known


@pytest.mark.parametrize("name", re.findall(r"valetkey\.(\w+)\(", section("From Python")))
def test_the_calls_are_those_that_there_are(name: str) -> None:
    assert callable(getattr(valetkey, name))


def test_the_example_compiles() -> None:
    example = re.search(r"```python\n(.*?)```", section("From Python"), re.DOTALL)
    assert example
    compile(example[1], "docs/login.md", "exec")

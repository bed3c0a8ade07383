"""docs/policy.md is held to what is there: its example, its codes, its forms."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from valetkey.gateway.decide import RefusalCode
from valetkey.gateway.normal import Target, normalise
from valetkey.gateway.policy import read

TEXT = (Path(__file__).parents[2] / "docs" / "policy.md").read_text(encoding="utf-8")


def test_the_example_can_be_used() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    policy = read(example, file="policy.toml")
    assert [rule.verdict for rule in policy.rules] == ["deny", "ask", "allow"]


def test_every_code_is_explained() -> None:
    assert set(re.findall(r"^\| `(\w+)` \| \d{3} \|", TEXT, re.MULTILINE)) == set(get_args(RefusalCode))


def test_the_paths_have_the_forms_that_are_told() -> None:
    (row,) = re.findall(r"^\| (`/a/\./b`.*?) \| (.*?) \|$", TEXT, re.MULTILINE)
    given, formed = (re.findall(r"`(.*?)`", cell) for cell in row)
    for path, form in zip(given, formed, strict=True):
        found = normalise(scheme="https", host="a.example", port=None, path=path)
        assert isinstance(found, Target)
        assert found.path == form

"""docs/providers.md is held to what is there: its examples, its fields, its table."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from valetkey import provider as types
from valetkey.config import Paths
from valetkey.inject import host_matches, reach
from valetkey.provider import AuthMethod, Provider
from valetkey.providers import catalogue
from valetkey.providers.reader import declared_fields, read

TEXT = (Path(__file__).parents[2] / "docs" / "providers.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
KINDS = [kind for name in types.__all__ if isinstance(kind := getattr(types, name), type)]


@pytest.mark.parametrize("text", EXAMPLES, ids=[tomllib.loads(text)["id"] for text in EXAMPLES])
def test_an_example_can_be_used_as_it_stands(text: str) -> None:
    provider = read(text, path=Path(f"{tomllib.loads(text)['id']}.toml"), origin="user")
    for method in provider.auth:
        base_url, hosts = reach(provider, method, {p.key: p.default or "" for p in method.parameters})
        assert host_matches(base_url.split("/")[2], hosts)


def test_the_examples_show_the_ways_to_log_in() -> None:
    kinds = {method["kind"] for text in EXAMPLES for method in tomllib.loads(text)["auth"]}
    assert kinds >= {"api-key", "device", "device-exchange", "authorization-code"}


@pytest.mark.parametrize("kind", KINDS, ids=[kind.__name__ for kind in KINDS])
def test_every_field_is_explained_and_no_other(kind: type) -> None:
    section = re.search(rf"^### {kind.__name__}\n(.*?)(?=^##)", TEXT, re.DOTALL | re.MULTILINE)
    assert section, f"docs/providers.md has no section {kind.__name__}"
    explained = re.findall(r"^\| `(\w+)` \|", section[1], re.MULTILINE)
    # In a file the parameters stand in its place.
    assert explained == [name for name in declared_fields(kind) if (kind, name) != (types.When, "values")]


def test_the_table_is_the_catalogue() -> None:
    found = catalogue(Paths(home=Path("/nonexistent"))).all()
    table = "\n".join(
        ["| id | name | ways to log in | variables | checked | live |", "|---|---|---|---|---|---|", *map(row, found)]
    )
    assert TEXT.rstrip().endswith(table), f"write this at the end of docs/providers.md:\n{table}"


def row(provider: Provider) -> str:
    checked = provider.checked
    assert checked is not None
    ways = ", ".join(way(method) for method in provider.auth)
    variables = ", ".join(f"`{name}`" for method in provider.auth for name in method.environment[:1])
    day = f"[{checked.on}]({checked.at})"
    return f"| `{provider.id}` | {provider.name} | {ways} | {variables} | {day} | {'yes' if checked.live else 'no'} |"


def way(method: AuthMethod) -> str:
    return method.id + ("*" if method.standing == "restricted" else "")

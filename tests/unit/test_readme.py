"""README is held to what is there: its table of providers, its commands, its Python."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import click
import pytest

from valetkey.cli.frame import valetkey
from valetkey.config import Paths
from valetkey.provider import Provider
from valetkey.providers import catalogue

TEXT = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def commands() -> list[str]:
    """Give each `valetkey …` of blocks and text, without comments and what is piped around it."""
    found = []
    for block in blocks("sh"):
        for line in block.splitlines():
            match = re.search(r"(?:^|\| )valetkey ([^#|]*)", line)
            if match:
                found.append(match[1].strip())
    for block in blocks("console"):
        found += re.findall(r"^\$ .*?valetkey (.+)$", block, re.MULTILINE)
    # In a sentence a command may stand for itself alone, or with words that are for the reader to put in.
    prose = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
    return found + re.findall(r"`valetkey ([^`]+)`", prose)


@pytest.mark.parametrize("words", commands())
def test_a_command_of_readme_is_one(words: str) -> None:
    rest = shlex.split(words)
    current: click.Command = valetkey
    with click.Context(valetkey, info_name="valetkey") as context:
        while isinstance(current, click.Group) and rest:
            _, found, rest = current.resolve_command(context, rest)
            assert found is not None
            current = found
        current.make_context("x", list(rest), parent=context, resilient_parsing=True)


def test_the_first_two_commands_are_demo_and_test() -> None:
    first = blocks("sh")[0]
    assert re.findall(r"make \w+", first) == ["make demo", "make test"]


@pytest.mark.parametrize("source", blocks("python"))
def test_the_python_of_readme_is_python(source: str) -> None:
    names = {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "valetkey"
    }
    import valetkey as package

    assert names
    assert all(hasattr(package, name) for name in names)


def test_the_links_of_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", TEXT):
        assert (Path(__file__).parents[2] / target).exists(), target


def test_the_table_is_the_catalogue() -> None:
    rows = [row(provider) for provider in catalogue(Paths(home=Path("/nonexistent"))).all()]
    table = "\n".join(["| provider | ways to log in | run against the real server |", "|---|---|---|", *rows])
    assert table in TEXT, f"write this into README.md:\n{table}"


def row(provider: Provider) -> str:
    assert provider.checked is not None
    ways = ", ".join(m.id + ("*" if m.standing == "restricted" else "") for m in provider.auth)
    return f"| `{provider.id}` | {ways} | {'yes' if provider.checked.live else 'never'} |"

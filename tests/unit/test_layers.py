"""Providers are data: no code that serves all of them knows one by its id."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from valetkey.agents import BUILT_IN

SOURCE = Path(__file__).parents[2] / "src" / "valetkey"
IDS = {file.stem for file in (SOURCE / "providers").glob("*.toml")}
# There it is the name of the tool of that name, and of the words that set it up.
TOOLS = {"cli/helper.py": {"aws"}, "setup/__init__.py": {"aws"}, "setup/aws.py": {"aws"}}
PLACES = (
    "runs",
    "gateway",
    "web",
    "cli",
    "chat",
    "helpers",
    "setup",
    "broker",
    "login",
    "sdk",
    "access",
    "renewal",
    "accounts",
    "checking",
)


def literals(tree: ast.AST) -> Iterator[ast.Constant]:
    """Give the string constants, docstrings too: none of them is just an id."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))


def mentions(text: str, ids: set[str]) -> list[tuple[int, str]]:
    """Find `id` and `id@account` where they are all that a literal says."""
    found = ((node.lineno, str(node.value)) for node in literals(ast.parse(text)))
    return [(line, value) for line, value in found if value.partition("@")[0] in ids]


def sources() -> list[Path]:
    files = [file for place in PLACES for file in [SOURCE / f"{place}.py", *(SOURCE / place).rglob("*.py")]]
    return [file for file in files if file.exists()]


def test_the_search_finds_what_it_looks_for() -> None:
    text = 'if provider.id == "openai":\n    use("aws@work")\nprint("see openai too")\n'
    assert mentions(text, {"openai", "aws"}) == [(1, "openai"), (2, "aws@work")]
    assert len(IDS) > 20
    assert len(sources()) > 5


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(SOURCE)))
def test_no_provider_is_known_by_its_id(file: Path) -> None:
    assert mentions(file.read_text(), IDS - TOOLS.get(str(file.relative_to(SOURCE)), set())) == []


@pytest.mark.parametrize("file", sorted((SOURCE / "runs").glob("*.py")), ids=lambda file: file.name)
def test_launching_knows_no_agent_by_its_id(file: Path) -> None:
    assert mentions(file.read_text(), set(BUILT_IN)) == []


def test_importing_valetkey_brings_nothing_heavy() -> None:
    program = "import sys; import valetkey, valetkey.stores, valetkey.config; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {"click", "asyncio", "httpx2", "keyring", "cryptography", "tomllib", "logging"} & set(
        done.stdout.split()
    ) == set()

"""Providers are data, and agents have a module each: no other code knows one by its id."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from valetkey.agents import BUILT_IN
from valetkey.provider import DialectId

SOURCE = Path(__file__).parents[2] / "src" / "valetkey"
IDS = {file.stem for file in (SOURCE / "providers").glob("*.toml")}
# There it is something else of that name: a tool and the words that set it up, an endpoint, a kind of source or a
# package, a dialect.
OTHERS = {
    "cli/fast.py": {"claude"},
    "cli/helper.py": {"aws", "claude"},
    "endpoints/__init__.py": {"aws"},
    "endpoints/aws.py": {"aws"},
    "flows/source.py": {"aws", "google"},
    "setup/__init__.py": {"aws", "claude", "codex"},
    "setup/aws.py": {"aws"},
    "setup/claude.py": {"claude"},
    "setup/codex.py": {"codex"},
    # The fake agent's: any provider will do.
    "testing/agent.py": {"mistral"},
}
DIALECTS = set(get_args(DialectId))


def literals(tree: ast.AST) -> Iterator[ast.Constant]:
    """Give the string constants, docstrings too: none of them is just an id."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))


def mentions(text: str, ids: set[str]) -> list[tuple[int, str]]:
    """Find `id` and `id@account` where they are all that a literal says."""
    found = ((node.lineno, str(node.value)) for node in literals(ast.parse(text)))
    return [(line, value) for line, value in found if value.partition("@")[0] in ids]


def sources() -> list[Path]:
    """Give every file but those of the agents, which are for the providers that they name."""
    return [file for file in sorted(SOURCE.rglob("*.py")) if SOURCE / "agents" not in file.parents]


def test_the_search_finds_what_it_looks_for() -> None:
    text = 'if provider.id == "openai":\n    use("aws@work")\nprint("see openai too")\n'
    assert mentions(text, {"openai", "aws"}) == [(1, "openai"), (2, "aws@work")]
    assert len(IDS) > 20
    assert len(sources()) > 200


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(SOURCE)))
def test_no_provider_and_no_agent_is_known_by_its_id(file: Path) -> None:
    known = (IDS | set(BUILT_IN)) - DIALECTS - OTHERS.get(str(file.relative_to(SOURCE)), set())
    assert mentions(file.read_text(), known) == []


@pytest.mark.parametrize("file", sorted((SOURCE / "agents").glob("*.py")), ids=lambda file: file.name)
def test_no_agent_is_known_but_in_its_own_file_and_the_table(file: Path) -> None:
    known = set() if file.name == "__init__.py" else set(BUILT_IN) - {file.stem}
    assert mentions(file.read_text(), known) == []


@pytest.mark.parametrize("file", sorted((SOURCE / "runs").glob("*.py")), ids=lambda file: file.name)
def test_a_run_knows_none_whatever_else_has_its_name(file: Path) -> None:
    assert mentions(file.read_text(), IDS | set(BUILT_IN)) == []


def test_importing_valetkey_brings_nothing_heavy() -> None:
    program = "import sys; import valetkey, valetkey.stores, valetkey.config; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {"click", "asyncio", "httpx2", "keyring", "cryptography", "tomllib", "logging"} & set(
        done.stdout.split()
    ) == set()

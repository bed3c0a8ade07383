"""The paths that make keys and change accounts, by the providers' own API references, against what is declared."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.support.decisions import PROVIDERS, client, policy
from valetkey.gateway.decide import Decision, Forward, Refuse, decide
from valetkey.gateway.route import read_target
from valetkey.provider import Provider

_TABLE = tomllib.loads((Path(__file__).parent / "off_limits.toml").read_text(encoding="utf-8"))
_BY_NUMBER = {"/repos/o/r": "/repositories/1", "/orgs/o": "/organizations/1"}
CLOSED = [(row["provider"], row["method"], row["path"]) for row in _TABLE["closed"]]
# GitHub takes its own number for a repository or an organization as well as the name.
CLOSED += [
    (provider, method, re.sub("^/repos/o/r|^/orgs/o", lambda m: _BY_NUMBER[m[0]], path))
    for provider, method, path in CLOSED
    if provider == "github" and path.startswith(tuple(_BY_NUMBER))
]
OPEN = [(row["provider"], row["method"], row["path"]) for row in _TABLE["open"]]


def _decided(provider: str, method: str, path: str, text: str = "") -> Decision:
    """Decide on it as a key would be that was granted this provider alone."""
    asking = client((provider,))
    origin = re.sub(r"(?<=[^:/])/.*", "", asking.grants[0].base_url)
    request = read_target(method, path if path.startswith("https:") else origin + path)
    assert not isinstance(request, Refuse)
    return decide(request, asking, policy(text))


def _spellings(path: str) -> dict[str, str]:
    origin, slash, rest = re.fullmatch(r"(https://[^/]+)?(/)(.*)", path).groups("")  # type: ignore[union-attr]
    letter = next(i for i, c in enumerate(rest) if c.isalpha())
    last = max(i for i, c in enumerate(rest) if c.isalpha())
    return {
        "plain": path,
        "upper": origin + slash + rest.upper(),
        "slash": path + "/",
        "first": f"{origin}/{rest[:letter]}%{ord(rest[letter]):02x}{rest[letter + 1 :]}",
        "last": f"{origin}/{rest[:last]}%{ord(rest[last]):02X}{rest[last + 1 :]}",
        "parameter": path + ";x=y",
    }


@pytest.mark.parametrize(("provider", "method", "path"), CLOSED)
def test_a_path_that_makes_keys_or_changes_the_account_is_off_limits(provider: str, method: str, path: str) -> None:
    for text in ("", 'default = "allow"'):
        for name, spelling in _spellings(path).items():
            decision = _decided(provider, method, spelling, text)
            assert isinstance(decision, Refuse), (name, spelling)
            assert decision.code == "off_limits", (name, spelling)


@pytest.mark.parametrize(("provider", "method", "path"), OPEN)
def test_a_path_of_ordinary_work_is_open(provider: str, method: str, path: str) -> None:
    decision = _decided(provider, method, path)
    assert isinstance(decision, Forward), decision
    assert decision.how == "inject"


@pytest.mark.parametrize("provider", [p for p in PROVIDERS.all() if p.api.off_limits], ids=lambda p: p.id)
def test_every_pattern_has_a_row_that_it_refuses(provider: Provider) -> None:
    decisions = [_decided(*row) for row in CLOSED if row[0] == provider.id]
    touched = {decision.rule.text for decision in decisions if decision.rule is not None}
    assert touched == set(provider.api.off_limits)
    assert any(row[0] == provider.id for row in OPEN)


def test_no_row_is_there_twice() -> None:
    assert len({*CLOSED, *OPEN}) == len(CLOSED) + len(OPEN)

"""The corpus of decisions that every front end of the gateway has to make alike: tests/contract/decisions.toml."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from valetkey.config import Paths
from valetkey.credential import CredentialRef
from valetkey.gateway import access_requests, grants
from valetkey.gateway.access_requests import AccessRequest
from valetkey.gateway.decide import Client, Decision, Grant, Refuse, RequestHead, decide
from valetkey.gateway.policy import GRANTED_ALONE, Policy, read
from valetkey.gateway.route import read_target, route
from valetkey.gateway.runs import policy_of
from valetkey.providers import catalogue

__all__ = ["CASES", "OF_KEYS", "PROVIDERS", "Case", "answered", "client", "decided", "example", "policy"]

_FILE = Path(__file__).parents[1] / "contract" / "decisions.toml"
_EXPECTED = ("verdict", "code", "how", "grant", "sent", "rule", "line")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One request. `policy` is the text of a file, empty for none; `expected` holds what the corpus says of it.

    `allow` is what a run may go to beside its grants, None where a key asks; `approved` what a person has let it do
    since; `shown` the account whose placeholder the request shows.
    """

    name: str
    method: str
    url: str
    grants: tuple[str, ...]
    policy: str
    allow: tuple[str, ...] | None = None
    approved: tuple[str, ...] = ()
    shown: CredentialRef | None = None
    expected: dict[str, Any]


def _ref(name: str) -> CredentialRef:
    provider, _, account = name.partition("@")
    return CredentialRef(provider=provider, account=account or "default")


def _read() -> list[Case]:
    corpus = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    return [
        Case(
            name=case["name"],
            method=case["method"],
            url=case["url"],
            grants=tuple(case["grants"]),
            policy=corpus["policies"][case["policy"]],
            allow=tuple(case["allow"]) if "allow" in case else None,
            approved=tuple(case.get("approved", ())),
            shown=_ref(case["shown"]) if "shown" in case else None,
            expected={key: value for key, value in case.items() if key in _EXPECTED},
        )
        for case in corpus["case"]
    ]


CASES = _read()
# What `policy explain` can be asked: it knows no runs.
OF_KEYS = [case for case in CASES if case.allow is None]


def answered(case: Case, answer: dict[str, Any]) -> dict[str, Any]:
    """Give, of what `policy explain --json` tells, that which the corpus says of this case."""
    rule = answer["rule"] or {"text": None, "place": ""}
    line = rule["place"].rpartition(":")[2]
    found = {**answer, "sent": answer["url"], "rule": rule["text"], "line": int(line) if line.isdigit() else None}
    return {key: found[key] for key in case.expected}


PROVIDERS = catalogue(Paths(home=Path("/nonexistent")))


def _grant(name: str) -> Grant:
    ref = _ref(name)
    # Azure has no address before somebody says which.
    found = grants.declared(ref, PROVIDERS.get(ref.provider), parameters={"resource_name": "example"})
    assert found is not None
    return found


def client(names: tuple[str, ...]) -> Client:
    """Give a client with these accounts, none of which has to be logged in."""
    return Client(id="k", kind="key", grants=tuple(map(_grant, names)))


def policy(text: str, allow: tuple[str, ...] | None = None, approved: tuple[str, ...] = ()) -> Policy:
    """Read a policy; without text, that of a key or a run without one."""
    if allow is not None:
        base = policy_of(text, file="policy.toml", allow=allow)
        return replace(base, rules=(*access_requests.rules(list(map(_approved, approved))), *base.rules))
    return read(text, file="policy.toml") if text else GRANTED_ALONE


def _approved(allows: str) -> AccessRequest:
    asked = AccessRequest(
        id="5f0c21aa", method="", url="", allows=allows, grant=None, reason="", asked_at=datetime.now(UTC)
    )
    return asked.settled(scope="run", by="ada", at=datetime.now(UTC))


def decided(case: Case, chosen: Policy) -> Decision:
    """Decide on a case, without any front end."""
    asking = client(case.grants)
    if case.url.startswith("/"):
        head = RequestHead(
            method=case.method, scheme="http", host="127.0.0.1", port=4380, path=case.url, grant=case.shown
        )
        request = route(head, asking)
    else:
        request = read_target(case.method, case.url)
        if isinstance(request, RequestHead):
            request = replace(request, grant=case.shown)
    return request if isinstance(request, Refuse) else decide(request, asking, chosen)


def example(text: str, *, near: bool) -> tuple[str, str]:
    """Give a method and a path that the pattern means, or one that misses it by a letter."""
    method, _, place = text.partition(" ")
    path = "/" + place.partition("/")[2]
    if near and path == "/**":
        return "GET", "/x"
    if near:
        path = re.sub(r"(.*[A-Za-z_])", r"\1x", path, count=1)
    body = path.removesuffix("/**").replace("**", "a/b").replace("*", "a")
    return ("POST" if method == "*" else method.partition(",")[0]), body + ("/y" if path.endswith("/**") else "")

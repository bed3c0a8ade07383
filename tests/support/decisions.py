"""The corpus of decisions that every front end of the gateway has to make alike: tests/contract/decisions.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["CASES", "Case", "answered"]

_FILE = Path(__file__).parents[1] / "contract" / "decisions.toml"
_EXPECTED = ("verdict", "code", "how", "grant", "sent", "rule", "line")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One request. `policy` is the text of a file, empty for none; `expected` holds what the corpus says of it."""

    name: str
    method: str
    url: str
    grants: tuple[str, ...]
    policy: str
    expected: dict[str, Any]


def _read() -> list[Case]:
    corpus = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    return [
        Case(
            name=case["name"],
            method=case["method"],
            url=case["url"],
            grants=tuple(case["grants"]),
            policy=corpus["policies"][case["policy"]],
            expected={key: value for key, value in case.items() if key in _EXPECTED},
        )
        for case in corpus["case"]
    ]


CASES = _read()


def answered(case: Case, answer: dict[str, Any]) -> dict[str, Any]:
    """Give, of what `policy explain --json` tells, that which the corpus says of this case."""
    rule = answer["rule"] or {"text": None, "place": ""}
    line = rule["place"].rpartition(":")[2]
    found = {**answer, "sent": answer["url"], "rule": rule["text"], "line": int(line) if line.isdigit() else None}
    return {key: found[key] for key in case.expected}

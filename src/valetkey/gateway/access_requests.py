"""Requests for access: what a run asked a person for, and what became of it. One sealed document for each run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Literal, get_args

from valetkey.clock import written
from valetkey.credential import CredentialRef
from valetkey.errors import InvalidName, RecordDamaged
from valetkey.gateway import pattern
from valetkey.gateway.documents import ref_in, text_in, time_in
from valetkey.gateway.pattern import WrongPattern
from valetkey.gateway.policy import Rule
from valetkey.store import Document, Store

__all__ = [
    "MOST",
    "MOST_PENDING",
    "AccessRequest",
    "Scope",
    "forget",
    "load",
    "place_of",
    "rules",
    "save",
    "stored_runs",
]

# A person reads them one by one: more than these from one run are a mistake, or an attack on his patience.
MOST_PENDING = 5
MOST = 50

Scope = Literal["once", "run"]
_States = Literal["pending", "approved", "denied", "used"]
_KIND = "run-access"
_EVERY = 1_000_000
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class AccessRequest:
    """One request for access. `allows` is what a rule would have to say ("GET host/path", "CONNECT host/**").

    Where it is for an account, that is `grant`, and `allows`, `method` and `url` are empty; `placeholder` stands for
    the account's credential then. `scope` and `by` are there once it is decided: "once" lets one request through, and
    it is `used` then.
    """

    id: str
    method: str
    url: str
    allows: str
    grant: CredentialRef | None
    reason: str
    asked_at: datetime
    state: _States = "pending"
    scope: Scope | None = None
    by: str = ""
    settled_at: datetime | None = None
    placeholder: str = field(default="", repr=False)

    def is_alike(self, other: AccessRequest) -> bool:
        """Say whether it is for the same thing."""
        return (self.allows, self.grant) == (other.allows, other.grant)

    def settled(self, *, scope: Scope | None, by: str, at: datetime) -> AccessRequest:
        """Give it as it is once a person has decided: without a scope, against it."""
        return replace(self, state="approved" if scope else "denied", scope=scope, by=by, settled_at=at)


def rules(requests: Sequence[AccessRequest]) -> tuple[Rule, ...]:
    """Give what was approved and counts, as rules that stand before all others: a person has said it of just this."""
    return tuple(
        Rule(
            verdict="allow",
            pattern=pattern.read(request.allows, host_needed=True),
            place=place_of(request.id),
            name=f"approved by {request.by}",
        )
        for request in requests
        if request.state == "approved" and request.allows
    )


def place_of(id: str) -> str:
    """Give where a rule that a person has approved stands, as verdicts and refusals name it."""
    return f"approval {id}"


# --- as they are kept ------------------------------------------------------------------------


def load(store: Store, run: str) -> tuple[AccessRequest, ...]:
    """Give what this run has asked for, the oldest first. Raises: RecordDamaged, StoreError."""
    document = store.document(_KIND, run)
    if document is None:
        return ()
    try:
        value = json.loads(document.body)
        if value["format"] != _FORMAT or not isinstance(value["requests"], list):
            raise ValueError
        return tuple(map(_read, value["requests"]))
    except (ValueError, TypeError, KeyError, RecursionError, InvalidName, WrongPattern):
        raise RecordDamaged(
            f"what the run {run} was approved cannot be read", hint="update Valetkey, or end it: `valetkey runs stop`"
        ) from None


def save(store: Store, run: str, requests: Sequence[AccessRequest], *, now: datetime) -> None:
    """Keep them in place of what was kept. Raises: StoreError."""
    body = json.dumps({"format": _FORMAT, "requests": [_written(request) for request in requests]})
    store.put_document(Document(kind=_KIND, id=run, title=run, body=body, updated_at=now))


def forget(store: Store, run: str) -> None:
    """Remove what is kept of a run. Raises: StoreError."""
    store.delete_document(_KIND, run)


def stored_runs(store: Store) -> frozenset[str]:
    """Give the ids of the runs that something is kept of. Raises: StoreError."""
    return frozenset(run for run, _, _ in store.documents(_KIND, limit=_EVERY))


def _written(request: AccessRequest) -> dict[str, object]:
    times = {name: None if at is None else written(at) for name, at in _times(request).items()}
    return asdict(request) | times | {"grant": None if request.grant is None else str(request.grant)}


def _times(request: AccessRequest) -> dict[str, datetime | None]:
    return {"asked_at": request.asked_at, "settled_at": request.settled_at}


def _read(value: dict[str, object]) -> AccessRequest:
    asked_at, state, scope = time_in(value["asked_at"]), value["state"], value["scope"]
    if asked_at is None or state not in get_args(_States) or scope not in (None, *get_args(Scope)):
        raise ValueError
    allows = text_in(value["allows"])
    if allows:
        pattern.read(allows, host_needed=True)
    return AccessRequest(
        id=text_in(value["id"]),
        method=text_in(value["method"]),
        url=text_in(value["url"]),
        allows=allows,
        grant=None if value["grant"] is None else ref_in(text_in(value["grant"])),
        reason=text_in(value["reason"]),
        asked_at=asked_at,
        state=state,  # type: ignore[arg-type]  # looked at above
        scope=scope,  # type: ignore[arg-type]  # likewise
        by=text_in(value["by"]),
        settled_at=time_in(value["settled_at"]),
        placeholder=text_in(value["placeholder"]),
    )

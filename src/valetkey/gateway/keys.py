"""Valet keys: what a tool is given in place of a credential. Each is a sealed document of the store."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from valetkey.audit.recorder import Audit, who_of
from valetkey.clock import Clock, written
from valetkey.credential import CredentialRef, Secret
from valetkey.errors import InvalidName, RecordDamaged, StoreUnwritable, UnknownKey, UsageError
from valetkey.gateway import grants as grants_of
from valetkey.gateway import policy as policies
from valetkey.gateway.documents import each, limits_in, ref_in, text_in, texts_in, time_in
from valetkey.gateway.limits import Limits
from valetkey.providers import Catalogue
from valetkey.store import Document, Store

__all__ = [
    "MOST_REQUESTS",
    "Keys",
    "State",
    "ValetKey",
    "base_urls",
    "digest_of",
    "proxy_url",
    "read_count",
    "read_expiry",
]

State = Literal["live", "expired", "revoked"]

KIND = "valet-key"
# Names and the making of keys are one thing at a time: two processes must not give the same name.
_LOCK = "valet keys"
_LOCK_SECONDS = 10.0
_FORMAT = 1
_FIELDS = {
    "format",
    "name",
    "digest",
    "grants",
    "policy",
    "policy_file",
    "limits",
    "created_at",
    "expires_at",
    "revoked_at",
}
_ID = re.compile(r"[0-9a-f]{12}\Z")
_MAX_NAME = 100
# No provider has shorter ones.
_SHORTEST_KEY = 20
_KEPT_AFTER_ITS_END = timedelta(days=30)


@dataclass(frozen=True, kw_only=True)
class ValetKey:
    """A key as it is kept. `policy` is the text of its file ("" for none), which may change or go.

    `digest` is the SHA-256 of the whole token. Its secret is 256 random bits, which nobody can guess from it: a slow
    hash would only cost time at each request.
    """

    id: str
    name: str
    grants: tuple[CredentialRef, ...]
    policy: str
    policy_file: str
    limits: Limits
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    digest: bytes = field(repr=False)

    def state(self, now: datetime) -> State:
        """Say whether it counts. Revoking is for good; an end is a moment, at which it counts no more."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and now >= self.expires_at else "live"


class Keys:
    """The valet keys of a store, by whichever process they were made. `audit` gets what is issued and revoked."""

    def __init__(self, store: Store, clock: Clock, audit: Audit | None = None) -> None:
        self._store = store
        self._clock = clock
        self._audit = audit

    def issue(
        self,
        *,
        grants: Sequence[CredentialRef],
        catalogue: Catalogue,
        environ: Mapping[str, str],
        name: str = "",
        policy: str | None = None,
        policy_file: str = "",
        limits: Limits | None = None,
        expires_at: datetime | None = None,
    ) -> tuple[ValetKey, Secret]:
        """Make a key, and give it with its token, which nobody can give again. Without a name it is called as its id.

        Raises: UsageError; ConfigError for the policy; for each grant what `grants.grantable` raises; StoreError.
        """
        if not grants:
            raise UsageError("a valet key without a grant opens nothing", hint="add --grant PROVIDER[@ACCOUNT]")
        for ref in grants:
            grants_of.grantable(ref, store=self._store, catalogue=catalogue, environ=environ)
        if policy is not None:
            policies.read(policy, file=policy_file)
        if expires_at is not None and expires_at <= self._clock.now():
            raise UsageError("the key would have ended before it was made", hint="give --expires a time to come")
        with self._alone():
            known = self.all()
            self._forget_the_old(known)
            key_id = _new_id({taken for key in known for taken in (key.id, key.name)})
            token = Secret(f"vk_{key_id}_{secrets.token_hex(32)}")
            key = ValetKey(
                id=key_id,
                name=self._free_name(name, known) if name else key_id,
                grants=tuple(dict.fromkeys(grants)),
                policy=policy or "",
                policy_file=policy_file,
                limits=limits or Limits(),
                created_at=self._clock.now(),
                expires_at=expires_at,
                digest=digest_of(token.reveal().encode()),
            )
            self._record(key)
            self._put(key)
        return key, token

    def revoke(self, id_or_name: str) -> ValetKey:
        """End a key for good; one that was revoked before stays as it was. Raises: UnknownKey, StoreError."""
        with self._alone():
            key = self.find(id_or_name)
            if key.revoked_at is None:
                key = replace(key, revoked_at=self._clock.now())
                self._put(key)
                if self._audit is not None:
                    # Behind it: nothing may keep a key from being revoked.
                    self._audit.tell("key-revoked", detail={"client": who_of(key.id), "name": key.name})
            return key

    def find(self, id_or_name: str) -> ValetKey:
        """Give a key by its id, else the live one of this name, else the last that had it. A whole token is its id.

        Raises: UnknownKey.
        """
        key_id = id_or_name[3:15] if id_or_name.startswith("vk_") else id_or_name
        now, known = self._clock.now(), self.all()
        found = [key for key in known if key.id == key_id] or sorted(
            (key for key in known if key.name == id_or_name), key=lambda key: key.state(now) != "live"
        )
        if not found:
            # What is no id may be a key; it is in the shell's history, and does not have to be in a log.
            shown = f" {key_id!r}" if _ID.match(key_id) or len(key_id) < _SHORTEST_KEY else " of this id or name"
            raise UnknownKey(f"there is no valet key{shown}", hint="see `valetkey key list --all`")
        return found[0]

    def all(self) -> list[ValetKey]:
        """Give every key that can be read, the last made or revoked first. Raises: StoreError."""
        return [key for _, key in self.each() if isinstance(key, ValetKey)]

    def each(self) -> Iterator[tuple[str, ValetKey | RecordDamaged]]:
        """Give every id and its key, in that order; in place of one that is damaged the error."""
        return each(self._store, KIND, _read)

    def _record(self, key: ValetKey) -> None:
        """Put a new key into the audit, before it counts."""
        if self._audit is None:
            return
        detail: dict[str, object] = {
            "client": who_of(key.id),
            "name": key.name,
            "grants": [str(ref) for ref in key.grants],
            "policy_file": key.policy_file,
            "limits": asdict(key.limits),
            "expires_at": None if key.expires_at is None else written(key.expires_at),
        }
        self._audit.append("key-issued", detail=detail)

    def _put(self, key: ValetKey) -> None:
        at = key.revoked_at or key.created_at
        self._store.put_document(Document(kind=KIND, id=key.id, title=key.name, body=_written(key), updated_at=at))

    def _free_name(self, name: str, known: Sequence[ValetKey]) -> str:
        if len(name) > _MAX_NAME or not name.isprintable() or name != name.strip() or name.startswith("vk_"):
            raise UsageError(
                "the name of a valet key is no line of text",
                hint=f"use letters, digits and blanks inside, at most {_MAX_NAME}, and no vk_ at the front",
            )
        now = self._clock.now()
        if any(name == key.id or (name == key.name and key.state(now) == "live") for key in known):
            raise UsageError(
                f"there is a valet key {name!r} already",
                hint=f"use another name, or run `valetkey key revoke '{name}'`",
            )
        return name

    def _forget_the_old(self, known: Sequence[ValetKey]) -> None:
        """Remove what ended long ago: the gateway opens all that there are whenever the store changes."""
        for key in known:
            ended = key.revoked_at or key.expires_at
            if ended is not None and self._clock.now() - ended >= _KEPT_AFTER_ITS_END:
                self._store.delete_document(KIND, key.id)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        end = self._clock.monotonic() + _LOCK_SECONDS
        while (lock := self._store.try_lock(_LOCK)) is None:
            if self._clock.monotonic() >= end:
                raise StoreUnwritable("another process is making or revoking a valet key", hint="try again")
            self._clock.pause(0.02)
        try:
            yield
        finally:
            lock.release()


def digest_of(token: bytes) -> bytes:
    """Give what is kept of a token: SHA-256 of all of it, so that its form is checked with its secret."""
    return hashlib.sha256(token).digest()


def _new_id(taken: set[str]) -> str:
    while (made := secrets.token_hex(6)) in taken:
        pass
    return made


# --- as it is kept ---------------------------------------------------------------------------


def _written(key: ValetKey) -> str:
    return json.dumps(
        {
            "format": _FORMAT,
            "name": key.name,
            "digest": key.digest.hex(),
            "grants": [str(ref) for ref in key.grants],
            "policy": key.policy,
            "policy_file": key.policy_file,
            "limits": asdict(key.limits),
            "created_at": key.created_at.isoformat(),
            "expires_at": key.expires_at.isoformat() if key.expires_at else None,
            "revoked_at": key.revoked_at.isoformat() if key.revoked_at else None,
        }
    )


def _read(document: Document) -> ValetKey:
    """Read what `_written` gave, and nothing else. Raises: RecordDamaged."""
    try:
        value = json.loads(document.body)
        if not isinstance(value, dict) or set(value) != _FIELDS or value["format"] != _FORMAT:
            raise ValueError
        created_at = time_in(value["created_at"])
        if created_at is None:
            raise ValueError
        return ValetKey(
            id=document.id,
            name=text_in(value["name"]),
            grants=tuple(map(ref_in, texts_in(value["grants"]))),
            policy=text_in(value["policy"]),
            policy_file=text_in(value["policy_file"]),
            limits=limits_in(value["limits"]),
            created_at=created_at,
            expires_at=time_in(value["expires_at"]),
            revoked_at=time_in(value["revoked_at"]),
            digest=bytes.fromhex(text_in(value["digest"])),
        )
    except (ValueError, TypeError, KeyError, RecursionError, InvalidName):
        raise RecordDamaged(
            f"the valet key {document.id} cannot be read", hint="update Valetkey, or make a new key"
        ) from None


# --- as a person writes it -------------------------------------------------------------------

_SPAN = re.compile(r"([0-9]{1,6})(s|m|h|d|w)")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
# More than a day has room for; and what a minute has is kept, eight bytes each.
_MOST_TOKENS = 10**15
MOST_REQUESTS = 10**6


def read_expiry(text: str, now: datetime) -> datetime:
    """Read `8h`, `30m`, `7d`, a date (0:00 UTC of that day) or a time with its zone. Raises: UsageError."""
    span = _SPAN.fullmatch(text)
    try:
        if span is not None:
            return now + timedelta(**{_UNITS[span[2]]: int(span[1])})
        when = datetime.fromisoformat(text)
        if re.fullmatch(r"[0-9W-]+", text):
            when = when.replace(tzinfo=UTC)
        if when.tzinfo is not None:
            return when.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise UsageError(
        f"--expires {text[:40]!r} is no time", hint="write 30m, 8h, 7d, 2026-12-31 or 2026-12-31T18:00Z (with a zone)"
    )


def read_count(text: str, option: str, *, most: int = _MOST_TOKENS) -> int:
    """Read a whole number of at least 1; `1e6` is one too. Raises: UsageError."""
    if re.fullmatch(r"[0-9][0-9_]{0,20}|[0-9]{1,9}(\.[0-9]{1,9})?[eE]\+?[0-9]{1,2}", text):
        value = float(text) if "e" in text.lower() else int(text.rstrip("_").replace("_", ""))
        if 1 <= value <= most and value == int(value):
            return int(value)
    raise UsageError(
        f"{option} {text[:40]!r} is no whole number", hint=f"write one from 1 to {most}, such as 1000 or 1e6"
    )


# --- where it is used ------------------------------------------------------------------------


def base_urls(address: str, grants: Sequence[CredentialRef]) -> dict[CredentialRef, str]:
    """Give, for each grant, what a tool takes in place of the provider's address. `address` is the gateway's own.

    A provider's name alone means the account that was granted first (`route`).
    """
    first: dict[str, CredentialRef] = {}
    for ref in grants:
        first.setdefault(ref.provider, ref)
    return {ref: f"{address}/{ref.provider if first[ref.provider] == ref else ref}" for ref in grants}


def proxy_url(address: str, token: str) -> str:
    """Give what goes into HTTPS_PROXY: the gateway's address with a key in it."""
    return address.replace("://", f"://x:{token}@", 1)

"""What is inside a sealed record, as JSON: the credential, and what decides where it may go.

    {"v": 1, "hosts": [...], "endpoints": [...], "base_url": "", "restricted": false,
     "credential": {"kind": "oauth-token", "method": ..., "parameters": {...}, "secrets": {"access_token": ..., ...},
                    "issued_at": "2026-11-22T12:00:00+00:00", "expires_at": null, ...}}

Times are ISO 8601 in UTC. An ambient credential is stored as a pointer, without what its source gave.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, assert_never

from valetkey.credential import Ambient, ApiKey, Credential, ExchangedKey, Fields, OAuthToken, Secret
from valetkey.errors import RecordDamaged
from valetkey.store import Record

__all__ = ["kind_of", "last_four_of", "payload_of", "read_payload", "time_from", "time_to"]

_T = TypeVar("_T")


def kind_of(credential: Credential) -> str:
    """Give the name of its kind, as it stands in records and tables."""
    match credential:
        case ApiKey():
            return "api-key"
        case OAuthToken():
            return "oauth-token"
        case ExchangedKey():
            return "exchanged-key"
        case Fields():
            return "fields"
        case Ambient():
            return "ambient"
        case _:
            assert_never(credential)


def last_four_of(credential: Credential) -> str:
    """Give the last four of a key that the user knows; nothing for tokens, which change, and pointers."""
    match credential:
        case ApiKey():
            return credential.key.last_four
        case Fields():
            return next((secret.last_four for secret in credential.values.values()), "")
        case OAuthToken() | ExchangedKey() | Ambient():
            return ""
        case _:
            assert_never(credential)


def payload_of(record: Record) -> bytes:
    """Give what is sealed."""
    return json.dumps(
        {
            "v": 1,
            "hosts": list(record.hosts),
            "endpoints": list(record.endpoints),
            "base_url": record.base_url,
            "restricted": record.restricted,
            "credential": _credential_to(record.credential),
        },
        separators=(",", ":"),
    ).encode()


def read_payload(plaintext: bytes) -> tuple[Credential, tuple[str, ...], tuple[str, ...], str, bool]:
    """Give credential, hosts, endpoints, base_url and restricted. Raises: RecordDamaged for any other shape."""
    try:
        top = _Reader(json.loads(plaintext))
        if top.take("v", int) != 1:
            raise ValueError("another version")
        credential = _credential_from(_Reader(top.take("credential", dict)))
        found = (
            credential,
            top.strings("hosts"),
            top.strings("endpoints"),
            top.take("base_url", str),
            top.take("restricted", bool),
        )
        top.end()
    except (ValueError, TypeError, RecursionError):
        # Without its cause: a reader's message could quote what it read.
        raise RecordDamaged(
            "a stored record has a shape that this version does not know",
            hint="log in again to replace it, or use the version of Valetkey that wrote it",
        ) from None
    return found


def time_to(time: datetime | None) -> str | None:
    """Write a time as ISO 8601 in UTC, in a form that sorts. Raises: ValueError for one without a zone."""
    if time is None:
        return None
    if time.tzinfo is None:
        raise ValueError("a time without a zone cannot be stored")
    return time.astimezone(UTC).isoformat(timespec="microseconds")


def time_from(text: str | None) -> datetime | None:
    """Read it back. Raises: ValueError for anything but UTC."""
    if text is None:
        return None
    time = datetime.fromisoformat(text)
    if time.utcoffset() != timedelta(0):
        raise ValueError("not in UTC")
    return time.astimezone(UTC)


def _credential_to(credential: Credential) -> dict[str, object]:
    common: dict[str, object] = {
        "kind": kind_of(credential),
        "method": credential.method,
        "parameters": dict(credential.parameters),
    }
    match credential:
        case ApiKey():
            return common | {"secrets": _reveal({"key": credential.key})}
        case OAuthToken():
            return common | _oauth_to(credential)
        case ExchangedKey():
            return common | {
                "secrets": _reveal({"key": credential.key}),
                "grant": _credential_to(credential.grant),
                "issued_at": time_to(credential.issued_at),
                "expires_at": time_to(credential.expires_at),
                "refresh_at": time_to(credential.refresh_at),
                "base_url": credential.base_url,
            }
        case Fields():
            return common | {"secrets": _reveal(credential.values)}
        case Ambient():
            return common | {"secrets": {}}
        case _:
            assert_never(credential)


def _oauth_to(token: OAuthToken) -> dict[str, object]:
    secrets = {
        "access_token": token.access_token,
        "refresh_token": token.refresh_token,
        "id_token": token.id_token,
    }
    return {
        "secrets": _reveal({name: secret for name, secret in secrets.items() if secret is not None}),
        "issued_at": time_to(token.issued_at),
        "expires_at": time_to(token.expires_at),
        "token_type": token.token_type,
        "scope": list(token.scope),
    }


def _reveal(secrets: Mapping[str, Secret]) -> dict[str, str]:
    return {name: secret.reveal() for name, secret in secrets.items()}


def _credential_from(reader: _Reader) -> Credential:
    kind, method, parameters = reader.take("kind", str), reader.take("method", str), reader.string_map("parameters")
    secrets = {name: Secret(value) for name, value in reader.string_map("secrets").items()}
    credential: Credential
    match kind:
        case "api-key":
            credential = ApiKey(method=method, parameters=parameters, key=_only_key(secrets))
        case "oauth-token":
            credential = _oauth_from(reader, method, parameters, secrets)
        case "exchanged-key":
            credential = _exchanged_from(reader, method, parameters, secrets)
        case "fields":
            credential = Fields(method=method, parameters=parameters, values=secrets)
        case "ambient" if not secrets:
            credential = Ambient(method=method, parameters=parameters)
        case _:
            raise ValueError("another kind")
    reader.end()
    return credential


def _oauth_from(reader: _Reader, method: str, parameters: Mapping[str, str], secrets: dict[str, Secret]) -> OAuthToken:
    if not {"access_token"} <= set(secrets) <= {"access_token", "refresh_token", "id_token"}:
        raise ValueError("other secrets")
    return OAuthToken(
        method=method,
        parameters=parameters,
        access_token=secrets["access_token"],
        refresh_token=secrets.get("refresh_token"),
        id_token=secrets.get("id_token"),
        issued_at=reader.time("issued_at"),
        expires_at=reader.time_or_none("expires_at"),
        token_type=reader.take("token_type", str),
        scope=reader.strings("scope"),
    )


def _exchanged_from(
    reader: _Reader, method: str, parameters: Mapping[str, str], secrets: dict[str, Secret]
) -> ExchangedKey:
    grant = _credential_from(_Reader(reader.take("grant", dict)))
    if not isinstance(grant, OAuthToken):
        raise ValueError("another grant")
    return ExchangedKey(
        method=method,
        parameters=parameters,
        key=_only_key(secrets),
        grant=grant,
        issued_at=reader.time("issued_at"),
        expires_at=reader.time_or_none("expires_at"),
        refresh_at=reader.time_or_none("refresh_at"),
        base_url=reader.string_or_none("base_url"),
    )


def _only_key(secrets: dict[str, Secret]) -> Secret:
    if set(secrets) != {"key"}:
        raise ValueError("other secrets")
    return secrets["key"]


class _Reader:
    """Takes each key of a JSON object once, by type; what is left at the end is an error."""

    def __init__(self, source: object) -> None:
        if not isinstance(source, dict):
            raise ValueError("not an object")
        self._left: dict[str, Any] = dict(source)

    def take(self, key: str, kind: type[_T]) -> _T:
        value = self._left.pop(key, None)
        if type(value) is not kind:
            raise ValueError("another type")
        return value

    def string_or_none(self, key: str) -> str | None:
        if key in self._left and self._left[key] is None:
            del self._left[key]
            return None
        return self.take(key, str)

    def strings(self, key: str) -> tuple[str, ...]:
        value = self.take(key, list)
        if not all(isinstance(item, str) for item in value):
            raise ValueError("another type")
        return tuple(value)

    def string_map(self, key: str) -> dict[str, str]:
        value = self.take(key, dict)
        if not all(isinstance(item, str) for item in value.values()):
            raise ValueError("another type")
        return value

    def time(self, key: str) -> datetime:
        time = time_from(self.take(key, str))
        if time is None:
            raise ValueError("no time")
        return time

    def time_or_none(self, key: str) -> datetime | None:
        return time_from(self.string_or_none(key))

    def end(self) -> None:
        if self._left:
            raise ValueError("unknown keys")

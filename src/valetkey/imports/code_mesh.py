"""Reads code-mesh's auth.json.

    {"credentials": {id: {"type": "apikey" | "api_key", "key"}
                       | {"type": "oauth", "access_token", "refresh_token"?, "expires_at"? (seconds since 1970)}
                       | {"type": "custom", "data": {name: value}}}}

The file does not say by which login an OAuth token came. It is taken over where the provider declares one that
ends in tokens; where the login ends in a key instead, a new login is the only way.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from valetkey.credential import ApiKey, Credential, ExchangedKey, Fields, OAuthToken, Secret
from valetkey.errors import ImportFailed, UnknownProvider
from valetkey.imports import Find, Found, Reading
from valetkey.provider import AuthMethod, Provider

__all__ = ["CodeMesh"]

# A file of hundreds of logins is some 100 kB.
MAX_FILE_BYTES = 1024 * 1024
# 9999-12-31 in seconds; larger numbers are milliseconds.
_LATEST_SECONDS = 253402300799
# What people call the secret in `custom`, whose names are free.
_KEY_NAMES = ("key", "api_key", "apikey", "apiKey", "token", "access_token")


class CodeMesh:
    """An imports.Source."""

    def default_path(self, environ: Mapping[str, str]) -> Path:
        """Give `~/.code-mesh/auth.json`."""
        return Path(environ.get("HOME") or Path.home()) / ".code-mesh" / "auth.json"

    def read(self, path: Path, *, find: Find, now: datetime, home: Path, uid: int) -> Reading:
        """Read the file. Raises: ImportFailed."""
        target, followed = _followed(path, home)
        content, warnings = _content(path, target, uid)
        logins = tuple(_login(name, entry, find=find, now=now) for name, entry in _entries(path, content).items())
        return Reading(path=path, logins=logins, warnings=(*followed, *warnings))


def _followed(path: Path, home: Path) -> tuple[Path, tuple[str, ...]]:
    """Give where the file is, and a warning when a link leads there: the file's own, or its folder's.

    Raises: ImportFailed for a link that leads nowhere or out of the home: whoever made it may have chosen the logins.
    """
    if not (path.is_symlink() or path.parent.is_symlink()):
        return path, ()
    hint = "name the file itself: `valetkey import code-mesh PATH/auth.json`"
    try:
        target = Path(os.path.realpath(path, strict=True))
    except OSError:
        raise ImportFailed(f"{path} is a link that leads nowhere", hint=hint) from None
    if not target.is_relative_to(os.path.realpath(home)):
        raise ImportFailed(f"{path} is a link to {target}, outside your home folder", hint=hint)
    return target, (f"{path} is a link; what was read is {target}",)


def _content(path: Path, target: Path, uid: int) -> tuple[bytes, tuple[str, ...]]:
    try:
        # Never for writing; a FIFO in its place must not make us wait, nor a link that was put there meanwhile mislead.
        descriptor = os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ImportFailed(f"{path} is not a file", hint="name code-mesh's auth.json")
            if status.st_uid != uid:
                raise ImportFailed(
                    f"{target} belongs to another user (uid {status.st_uid})",
                    hint="run the import as that user, or make a copy of your own and name it",
                )
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ImportFailed(
            f"{path} is not there", hint="name the file: `valetkey import code-mesh PATH/auth.json`"
        ) from None
    except OSError as error:
        raise ImportFailed(
            f"{path} cannot be read: {(error.strerror or 'unknown error').lower()}",
            hint="check that the file is yours and that you may read it",
        ) from error
    if len(content) > MAX_FILE_BYTES:
        raise ImportFailed(f"{path} is longer than {MAX_FILE_BYTES} bytes", hint="name code-mesh's auth.json")
    return content, _warnings(target, status)


def _warnings(path: Path, status: os.stat_result) -> tuple[str, ...]:
    if not status.st_mode & 0o077:
        return ()
    return (f"others may read {path} (mode {stat.S_IMODE(status.st_mode):o}): run `chmod 600 {path}`",)


def _entries(path: Path, content: bytes) -> dict[str, object]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        # The decoder's own text quotes nothing, but its cause may hold the document: only the place is told.
        place = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ImportFailed(
            f"{path} is not JSON{place}", hint="check that it is code-mesh's auth.json, or log in again instead"
        ) from None
    entries = document.get("credentials") if isinstance(document, dict) else None
    if not isinstance(entries, dict):
        raise ImportFailed(
            f"{path} has no `credentials` table", hint="check that it is code-mesh's auth.json, or log in again instead"
        )
    return entries


def _login(id: str, entry: object, *, find: Find, now: datetime) -> Found:
    if not isinstance(entry, dict):
        return Found(id=id, problem="is no table", hint="log in again instead")
    try:
        provider = find(id)
    except UnknownProvider as error:
        return Found(id=id, problem="is no provider that Valetkey knows", hint=error.hint)
    match entry.get("type"):
        case "apikey" | "api_key":
            found = _with_key(provider, entry.get("key"))
        case "oauth":
            found = _with_tokens(provider, entry, now)
        case "custom":
            found = _custom(provider, entry.get("data"))
        case _:
            found = "has a type that is not apikey, api_key, oauth or custom"
    if isinstance(found, str):
        return Found(id=id, provider=provider.id, problem=found, hint=f"run `valetkey login {provider.id}`")
    method = provider.method(found.method)
    return Found(
        id=id,
        provider=provider.id,
        credential=found,
        restricted=method is not None and method.standing == "restricted",
    )


def _with_key(provider: Provider, key: object) -> Credential | str:
    secret = _secret(key)
    if secret is None:
        return "has no usable key"
    method = next((m for m in provider.auth if m.kind in ("api-key", "cloud", "custom") and not m.secrets), None)
    if method is None:
        return "has a key, and this provider takes none"
    parameters = _parameters(method, {})
    if parameters is None:
        return "lacks parameters that this provider needs"
    return ApiKey(method=method.id, key=secret, parameters=parameters)


def _with_tokens(provider: Provider, entry: Mapping[str, object], now: datetime) -> Credential | str:
    access_token, refresh_token = _secret(entry.get("access_token")), _secret(entry.get("refresh_token"))
    if access_token is None:
        return "has no usable access token"
    method = next((m for m in provider.auth if _ends_in_tokens(m)), None)
    if method is None:
        return "has an OAuth token, and this provider's logins do not end in one"
    parameters = _parameters(method, {})
    if parameters is None:
        return "lacks parameters that this provider needs"
    expires_at = _time(entry.get("expires_at"))
    if method.kind == "device-exchange":
        # The lasting token was kept as the refresh token, the bought key as the access token.
        grant = OAuthToken(
            method=method.id, access_token=refresh_token or access_token, issued_at=now, parameters=parameters
        )
        return ExchangedKey(
            method=method.id, key=access_token, grant=grant, issued_at=now, expires_at=expires_at, parameters=parameters
        )
    return OAuthToken(
        method=method.id,
        access_token=access_token,
        refresh_token=refresh_token,
        issued_at=now,
        expires_at=expires_at,
        parameters=parameters,
    )


def _ends_in_tokens(method: AuthMethod) -> bool:
    return (
        method.kind in ("authorization-code", "device", "device-exchange")
        and method.create_key is None
        and method.token.key is None
    )


def _custom(provider: Provider, data: object) -> Credential | str:
    if not isinstance(data, dict):
        return "has no `data` table"
    values = cast("dict[str, object]", data)
    for method in provider.auth:
        if method.kind not in ("api-key", "cloud", "custom"):
            continue
        parameters = _parameters(method, values)
        if parameters is None:
            continue
        if method.secrets:
            found = {s.key: secret for s in method.secrets if (secret := _secret(values.get(s.key))) is not None}
            if all(s.key in found or not s.required for s in method.secrets) and found:
                return Fields(method=method.id, values=found, parameters=parameters)
            continue
        key = next((s for name in _KEY_NAMES if (s := _secret(values.get(name))) is not None), None)
        if key is not None:
            return ApiKey(method=method.id, key=key, parameters=parameters)
    return "has fields of which this provider's logins can make nothing"


def _parameters(method: AuthMethod, values: Mapping[str, object]) -> dict[str, str] | None:
    """Give the declared parameters that are among `values` or have defaults; None when a required one is missing."""
    found: dict[str, str] = {}
    for parameter in method.parameters:
        value = values.get(parameter.key, parameter.default)
        if isinstance(value, str) and value:
            found[parameter.key] = value
        elif parameter.required:
            return None
    return found


def _secret(value: object) -> Secret | None:
    """Give a text that can stand in a header; anything else is no secret."""
    if not isinstance(value, str) or not value.strip() or len(value) > 16384:
        return None
    text = value.strip()
    return Secret(text) if text.isascii() and text.isprintable() else None


def _time(value: object) -> datetime | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        return None
    seconds = value / 1000 if value > _LATEST_SECONDS else value
    try:
        return datetime.fromtimestamp(seconds, tz=UTC)
    except (ValueError, OverflowError, OSError):
        return None

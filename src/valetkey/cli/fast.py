"""`valetkey token NAME` and `valetkey helper claude NAME`: the credential on stdout, in milliseconds.

Other tools call them before each request, so `fast` imports no click, no asyncio and no HTTP client. It answers only
what is simple: a stored login that is fresh, under a key file, or one that the running gateway gives: that holds the
store's key where another key source would ask for it, and renews. For everything else it gives way to `token.py` and
`helper.py`.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # typing itself would cost a millisecond
if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any

__all__ = ["fast"]

# What a program that a closed pipe killed ends with: 128 + SIGPIPE.
_PIPE_CLOSED = 141
# A renewal may take 20 s; behind that the whole command looks for itself.
_PATIENCE_SECONDS = 25.0


def fast(argv: list[str]) -> int | None:
    """Print the credential and give 0, or None where the whole command has to look."""
    if argv[:2] == ["helper", "claude"]:
        names, kept = argv[2:], True
    elif argv[:1] == ["token"]:
        names, kept = argv[1:], False
    else:
        return None
    if len(names) != 1 or names[0].startswith("-"):
        return None
    provider, at, account = names[0].partition("@")
    home = os.environ.get("VALETKEY_HOME") or os.path.join(os.path.expanduser("~"), ".valetkey")
    if (at and not account) or (not at and _folders_decide(home)):
        return None
    value, audited = None, True
    if os.path.exists(os.path.join(home, "store.key")):
        from valetkey.stores.quick import quick_record

        record = quick_record(home, provider, account or None)
        value = _usable(record, kept=kept) if record is not None else None
        if record is not None and value is not None:
            from valetkey.audit.chain import quick_use

            # Before it is handed out. Where that cannot be, the whole command says why.
            audited = quick_use(home, f"command:{argv[0]}", f"{provider}@{record['account']}")
    if not audited:
        return None
    if value is None:
        value = _from_gateway(home, names[0], kept=kept)
    return None if value is None else _print(value)


def _print(value: str) -> int:
    try:
        sys.stdout.write(value + "\n")
        sys.stdout.flush()
    except OSError as error:
        # The interpreter's own last flush is to be quiet as well.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):
            return _PIPE_CLOSED
        sys.stderr.write(f"valetkey: error: {(error.strerror or 'the output cannot be written').lower()}\n")
        sys.stderr.write("valetkey: hint: check where standard output goes, and the free space there\n")
        return 1
    return 0


def _from_gateway(home: str, name: str, *, kept: bool) -> str | None:
    """Give what the running gateway gives; None where there is none, or it has an error to tell."""
    if not os.path.exists(os.path.join(home, "run", "serve.json")):
        return None
    from valetkey import serving
    from valetkey.errors import ValetkeyError

    try:
        answer = serving.ask(home, "POST", "/token", {"name": name}, patience_seconds=_PATIENCE_SECONDS)
    except (ValetkeyError, OSError):
        return None
    if kept and (ends := _time(answer.get("expires_at"))) is not None:
        from datetime import UTC, datetime

        from valetkey.freshness import LEAST_LEFT

        if ends - datetime.now(UTC) < LEAST_LEFT:
            return None
    return _text(answer.get("token"))


def _folders_decide(home: str) -> bool:
    """Whether config.toml may name another account for this folder."""
    try:
        with open(os.path.join(home, "config.toml"), "rb") as file:
            return b"folders" in file.read()
    except FileNotFoundError:
        return False


def _usable(record: dict[str, Any], *, kept: bool) -> str | None:
    """Give the secret of a record that may be handed out as it is, also to a tool that keeps it for a while."""
    from datetime import UTC, datetime, timedelta

    from valetkey.freshness import LEAST_LEFT, Freshness, judge

    if record["restricted"] or record["health"] not in ("ok", "expiring", "unknown"):
        return None
    credential = record["credential"]
    secrets = credential["secrets"]
    match credential["kind"]:
        case "api-key":
            return _text(secrets["key"])
        case "oauth-token":
            value = secrets["access_token"]
        case "exchanged-key":
            value = secrets["key"]
        case _:
            return None
    issued, ends, renew = (_time(credential.get(name)) for name in ("issued_at", "expires_at", "refresh_at"))
    if issued is None or ends is None:
        return None
    age = max(timedelta(0), datetime.now(UTC) - issued)
    state = judge(age, life=ends - issued, renew_after=None if renew is None else renew - issued)
    # A short life is fresh with less than that left.
    short = kept and ends - issued - age < LEAST_LEFT
    return _text(value) if state is Freshness.FRESH and not short else None


def _time(value: object) -> datetime | None:
    from datetime import datetime

    return datetime.fromisoformat(value) if isinstance(value, str) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None

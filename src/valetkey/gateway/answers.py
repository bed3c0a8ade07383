"""The gateway's own answers: the errors of the whole project as JSON, in the form that AI clients print.

Clients of OpenAI read `error.message`, those of Anthropic want `type: error` around it; both find what they look for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from valetkey.errors import RefreshFailed, ValetkeyError
from valetkey.gateway.decide import Refuse
from valetkey.gateway.message import status_line

__all__ = [
    "Answer",
    "access",
    "failed",
    "foreign_credential",
    "foreign_key",
    "key_in_request",
    "no_key",
    "no_run",
    "of_error",
    "placeholder_in_request",
    "refused",
    "too_many",
]

_LINE = "if that is what you want, add the line to the policy's file, and make a new key with it"
_HINTS = {
    "malformed": "send it in plain HTTP/1.1",
    "unknown_provider": "use http://HOST:PORT/PROVIDER/… with a provider that the key was granted",
    # Both are told to runs alone.
    "unknown_server": "ask whoever started it to start it with `--mcp NAME`",
    "relay_alone": "ask for the account by name: `--grant PROVIDER`",
    "not_granted": "create a key with `valetkey key create --grant` for it",
    "plain_http": "use https",
    "address_refused": "grant an account that is for this address",
    "method_refused": "send it without",
    "off_limits": _LINE,
    "denied": _LINE,
}


# A run cannot help itself: whoever started it can.
_RUN_LINE = "if that is needed, ask whoever started run {run} to add the line to its policy's file and to start it anew"
_RUN_HINTS = _HINTS | {
    "unknown_provider": "use a provider that run {run} was granted, or ask for it: `valetkey run --grant PROVIDER`",
    "unknown_server": "use a server that run {run} was given, or ask whoever started it for: `valetkey run --mcp NAME`",
    "relay_alone": "ask there; or ask whoever started run {run} for the whole account: `valetkey run --grant PROVIDER`",
    "not_granted": "use the placeholder of an account that is for this address, or none; run {run} has no other one",
    "address_refused": "run {run} reaches this machine and private networks only where a granted account is for them",
    "off_limits": _RUN_LINE,
    "denied": _RUN_LINE,
}
_ANOTHER_HOST = "if that is needed, ask whoever started run {run} to start it with `--allow {host}`"


class Answer:
    """A whole answer of our own. `code` goes into the trace as the outcome, `client` where nobody counts as one."""

    __slots__ = ("body", "client", "code", "headers", "status")

    def __init__(self, status: int, code: str, error: dict[str, object], headers: bytes = b"") -> None:
        self.status = status
        self.code = code
        self.client = ""
        told = {name: value for name, value in error.items() if value is not None}
        self.body = json.dumps(
            {"type": "error", "error": {"type": f"valetkey_{code}", "code": code, **told}}, ensure_ascii=False
        ).encode()
        # For whoever sees it on a terminal.
        self.body += b"\n"
        self.headers = headers

    def head(self, *, keep_alive: bool) -> bytes:
        """Write the head."""
        return (
            b"%bcontent-type: application/json\r\nx-content-type-options: nosniff\r\n%b%bcontent-length: %d\r\n\r\n"
            % (
                status_line(self.status),
                self.headers,
                b"" if keep_alive else b"connection: close\r\n",
                len(self.body),
            )
        )


def failed(status: int, code: str, message: str, hint: str, *, provider: str | None = None) -> Answer:
    """Give the answer for what went wrong here or on the way."""
    return Answer(status, code, {"message": message, "hint": hint, "provider": provider})


def of_error(error: ValetkeyError) -> Answer:
    """Give the answer for an error of ours: 401 where a login helps, else what a gateway says."""
    status, code = 502, error.code
    if error.exit_status == 3:
        status, code = 401, "needs_login"
    elif error.exit_status == 4:
        status = 403
    elif error.code == "connect_timeout":
        status = 504
    elif error.code in ("store_locked", "refresh_failed", "refresh_busy", "audit_unwritable", "issuer_unavailable"):
        status = 503
    fields: dict[str, object] = {"message": error.message, "hint": error.hint, "provider": error.provider}
    if code != error.code:
        fields["cause"] = error.code
    wait = error.retry_after if isinstance(error, RefreshFailed) else None
    return Answer(status, code, fields, b"" if wait is None else _retry_after(wait))


def access(status: int, told: Mapping[str, object]) -> Answer:
    """Give the answer to a run that asks the gateway itself."""
    made = Answer(status, "access", {})
    made.body = json.dumps(told, ensure_ascii=False).encode() + b"\n"
    return made


def refused(decision: Refuse, *, run: str | None = None, ask: Mapping[str, object] | None = None) -> Answer:
    """Give the answer for a decision: the rule, and the line that would allow it. `run` is the id of who asked.

    `ask` is how it asks a person for that, where one may let it have it.
    """
    rule = decision.rule
    hint = _HINTS[decision.code] if run is None else _run_hint(decision, run)
    if ask is not None:
        hint += f"; to ask from here: {ask['command']}"
    return Answer(
        decision.status,
        decision.code,
        {
            "message": decision.reason,
            "hint": hint,
            "provider": None if decision.grant is None else decision.grant.provider,
            "rule": None if rule is None else {"place": rule.place, "name": rule.name, "text": rule.text},
            "allow_line": decision.allow_line,
            "ask": ask,
        },
    )


def _run_hint(decision: Refuse, run: str) -> str:
    target = decision.target
    if decision.code == "denied" and decision.grant is None and target is not None:
        return _ANOTHER_HOST.format(run=run, host=target.authority)
    return _RUN_HINTS[decision.code].format(run=run)


def no_run(run: str, why: str) -> Answer:
    """Give the answer to what comes by the socket of a run that does not count."""
    return failed(403, "run_refused", f"run {run} may ask for nothing: {why}", "start a new run with `valetkey run`")


def foreign_key(run: str) -> Answer:
    """Give the answer to a run that shows a valet key."""
    return failed(
        403,
        "foreign_key",
        f"the request shows a valet key, and run {run} is known by its socket",
        "take the key out: a run needs none",
    )


def foreign_credential(run: str, why: str) -> Answer:
    """Give the answer to a run that shows what is none of its placeholders."""
    return failed(
        403,
        "foreign_credential",
        why,
        f"use what run {run} has in its environment, or no credential at all: the granted one is put in",
    )


def placeholder_in_request(run: str) -> Answer:
    """Give the answer to a request that would carry a placeholder to a provider."""
    return failed(
        400,
        "placeholder_in_request",
        "the request holds a placeholder where it would reach the provider",
        f"put what run {run} has in its environment where the provider's own key goes, and there alone",
    )


def no_key(*, proxy: bool, why: str | None) -> Answer:
    """Give the answer to a client that shows no valet key, or none that counts: `why` says so."""
    message = why or "the request shows no valet key"
    if why is not None:
        hint = "see `valetkey key list --all`, or make one with `valetkey key create --grant PROVIDER`"
    else:
        hint = "make one with `valetkey key create --grant PROVIDER`"
    if proxy:
        hint += ", and put it into the proxy's address: http://x:KEY@HOST:PORT"
        headers = b'proxy-authenticate: Basic realm="valetkey"\r\n'
        return Answer(407, "key_refused", {"message": message, "hint": hint}, headers)
    hint += ", and use it where the tool wants its API key"
    headers = b'www-authenticate: Basic realm="valetkey"\r\n'
    return Answer(401, "key_refused", {"message": message, "hint": hint}, headers)


def key_in_request() -> Answer:
    """Give the answer to a request that would carry a valet key to a provider."""
    return failed(
        400,
        "key_in_request",
        "the request holds a valet key where it would reach the provider",
        "put the key where the provider's own key goes, and there alone",
    )


def too_many(wait_seconds: float, *, run: str | None = None) -> Answer:
    """Give the answer to a key or run that has reached a limit; the wait is rounded up (RFC 9110 section 10.2.3)."""
    whose = "this valet key" if run is None else f"run {run}"
    return Answer(
        429,
        "limit_reached",
        {"message": f"a limit of {whose} is reached", "hint": f"try again in {_seconds(wait_seconds)} s"},
        _retry_after(wait_seconds),
    )


def _seconds(wait: float) -> int:
    return max(1, math.ceil(wait))


def _retry_after(wait: float) -> bytes:
    return b"retry-after: %d\r\n" % _seconds(wait)

"""The gateway's own answers: the errors of the whole project as JSON, in the form that AI clients print.

Clients of OpenAI read `error.message`, those of Anthropic want `type: error` around it; both find what they look for.
"""

from __future__ import annotations

import json
import math

from valetkey.errors import RefreshFailed, ValetkeyError
from valetkey.gateway.decide import Refuse
from valetkey.gateway.message import status_line

__all__ = ["Answer", "failed", "no_key", "of_error", "refused", "too_many"]

_LINE = "if that is what you want, add the line to the policy's file, and make a new key with it"
_HINTS = {
    "malformed": "send it in plain HTTP/1.1",
    "unknown_provider": "use http://HOST:PORT/PROVIDER/… with a provider that the key was granted",
    "not_granted": "create a key with `valetkey key create --grant` for it",
    "plain_http": "use https",
    "address_refused": "grant an account that is for this address",
    "method_refused": "send it without",
    "off_limits": _LINE,
    "denied": _LINE,
}


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
    elif error.code in ("store_locked", "refresh_failed", "refresh_busy"):
        status = 503
    fields: dict[str, object] = {"message": error.message, "hint": error.hint, "provider": error.provider}
    if code != error.code:
        fields["cause"] = error.code
    wait = error.retry_after if isinstance(error, RefreshFailed) else None
    return Answer(status, code, fields, b"" if wait is None else _retry_after(wait))


def refused(decision: Refuse) -> Answer:
    """Give the answer for a decision: the rule, and the line that would allow it."""
    rule = decision.rule
    return Answer(
        decision.status,
        decision.code,
        {
            "message": decision.reason,
            "hint": _HINTS[decision.code],
            "provider": None if decision.grant is None else decision.grant.provider,
            "rule": None if rule is None else {"place": rule.place, "name": rule.name, "text": rule.text},
            "allow_line": decision.allow_line,
        },
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


def too_many(wait_seconds: float) -> Answer:
    """Give the answer to a key that has reached a limit; the wait is rounded up (RFC 9110 section 10.2.3)."""
    return Answer(
        429,
        "limit_reached",
        {"message": "a limit of this valet key is reached", "hint": f"try again in {_seconds(wait_seconds)} s"},
        _retry_after(wait_seconds),
    )


def _seconds(wait: float) -> int:
    return max(1, math.ceil(wait))


def _retry_after(wait: float) -> bytes:
    return b"retry-after: %d\r\n" % _seconds(wait)

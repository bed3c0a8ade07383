"""Logging; drops every secret.

Whatever is a `Secret` from `set_up` on is taken out of messages and tracebacks, in the forms that it takes on a wire;
what looks like a credential is taken out too.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, TextIO
from urllib.parse import quote, quote_plus

from valetkey.credential import Credential, Secret, secrets_of
from valetkey.errors import ConfigError

if TYPE_CHECKING:
    import logging

__all__ = ["forms", "generation", "holds_secret", "known", "redact", "set_up", "without_beginning"]

REMOVED = "[secret]"
# What people give a server of their own for a key ("lm-studio") may well stand in its names; no real key is shorter.
_SHORTEST_REAL = 16
# Shorter ones (a PIN, an empty password) would tear holes into ordinary words.
_SHORTEST = 6
# A process that runs for months makes new tokens every hour; the oldest are dead by then.
_KEPT = 4096
_BY_HTML = re.compile(r"[+=&<>'\"]")
_ESCAPE = re.compile("%[0-9A-F]{2}")
_forms: OrderedDict[str, tuple[str, ...]] = OrderedDict()
# The known secrets by the first characters of their forms: a text is searched once, however many secrets there are.
_by_beginning: dict[str, tuple[str, ...]] = {}
_generations = itertools.count(1)
_generation = 0

_NAMES = (
    r"access_token|refresh_token|id_token|token|code|state|key|api[-_]key|client_secret|client_assertion|secret"
    r"|device_code|user_code|code_verifier|password|passphrase|signature|sig|authkey|raw_key"
)
# What stands in every match, the pattern, what takes the match's place.
_PATTERNS = (
    # In a query, a fragment or a form: up to the next field.
    ("=", re.compile(rf"(?i)(?<![\w-])((?:{_NAMES})=)[^&\s\"'<>;,)]+"), rf"\1{REMOVED}"),
    # In JSON or a printed dict.
    (":", re.compile(rf"(?i)([\"'](?:{_NAMES})[\"']\s*:\s*[\"'])[^\"']+"), rf"\1{REMOVED}"),
    # In a header, as it is sent or as it is printed.
    (
        "",
        re.compile(
            r"(?i)((?:authorization|x-api-key|x-goog-api-key|api-key|cookie|set-cookie)[\"']?\s*[:=,]\s*(?:b?[\"'])?)"
            r"[^\"'\r\n]+"
        ),
        rf"\1{REMOVED}",
    ),
    ("", re.compile(r"(?i)\b(bearer|basic|token)\s+[A-Za-z0-9._~+/=-]{12,}"), rf"\1 {REMOVED}"),
    # user:password in an address.
    ("://", re.compile(r"(://)[^/\s:@\"']+:[^/\s@\"']+@"), rf"\1{REMOVED}@"),
    # Keys that tell what they are, and JSON web tokens.
    (
        "",
        re.compile(r"\b(?:sk|pk|rk|vk|xai|gsk|hf|nvapi|gh[pousr]|github_pat|AKIA|ASIA|AIza)[-_]?[A-Za-z0-9_-]{16,}"),
        REMOVED,
    ),
    ("eyJ", re.compile(r"\beyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"), REMOVED),
)


def known(value: str) -> None:
    """Take this out of everything that is logged from now on, as it is, base64 and URL-encoded."""
    global _generation
    if len(value) < _SHORTEST or value in _forms:
        return
    _forms[value] = forms(value)
    for beginning in _beginnings(_forms[value]):
        _by_beginning[beginning] = (*_by_beginning.get(beginning, ()), value)
    _generation = next(_generations)
    while len(_forms) > _KEPT:
        _forget(*_forms.popitem(last=False))


def _beginnings(of: tuple[str, ...]) -> set[str]:
    return {form[:_SHORTEST] for form in of}


def _forget(value: str, of: tuple[str, ...]) -> None:
    for beginning in _beginnings(of):
        left = tuple(other for other in _by_beginning.get(beginning, ()) if other != value)
        if left:
            _by_beginning[beginning] = left
        else:
            _by_beginning.pop(beginning, None)


def generation() -> int:
    """Give a number that changes when another secret becomes known: what was redacted before may hold it."""
    return _generation


def forms(value: str) -> tuple[str, ...]:
    """Give what a secret looks like on a wire, the longest first: one may hold another. An empty one has no form."""
    return tuple(sorted(set(_encodings(value)) - {""}, key=len, reverse=True))


def _encodings(value: str) -> Iterator[str]:
    yield value
    yield value.encode("unicode_escape").decode()
    yield json.dumps(value)[1:-1]
    yield json.dumps(value)[1:-1].replace("/", "\\/")  # as PHP writes it
    # As .NET and Gson write JSON, in both spellings; and as a form that escapes only what it must.
    for digits in ("04X", "04x"):
        yield _BY_HTML.sub(partial(_as_unicode, digits), value)
    yield value.replace("+", "%2B")
    yield value.replace("+", "%2b")
    if len(value) > _SHORTEST_REAL:
        yield value.rstrip("=")
    data = value.encode(errors="surrogatepass")
    for encoded in (quote(data), quote(data, safe=""), quote_plus(data)):
        yield encoded
        yield _ESCAPE.sub(lambda found: found[0].lower(), encoded)  # RFC 3986 section 2.1: both are the same
    # Base64 of a longer text (`user:password`) holds the secret at one of three offsets; its edges are shared.
    for offset in range(3):
        cut = data[(3 - offset) % 3 :]
        middle = cut[: len(cut) // 3 * 3]
        if len(middle) >= _SHORTEST:
            encoded = base64.b64encode(middle).decode()
            yield encoded
            yield encoded.replace("+", "-").replace("/", "_")
    yield base64.b64encode(data).decode()
    yield base64.urlsafe_b64encode(data).decode()


def _as_unicode(digits: str, found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):{digits}}"


def holds_secret(text: str, credential: Credential | None) -> bool:
    """Say whether a secret of the credential, in any form, stands in a name that a server told."""
    secrets = () if credential is None else secrets_of(credential).values()
    values = (secret.reveal() for secret in secrets)
    return any(form in text for value in values if len(value) >= _SHORTEST_REAL for form in forms(value))


def redact(text: str) -> str:
    """Give the text without what is known to be secret and without what looks like it."""
    for value in _in(text):
        for form in _forms.get(value, ()):
            text = text.replace(form, REMOVED)
    for mark, pattern, replacement in _PATTERNS:
        if mark in text:
            text = pattern.sub(replacement, text)
    return text


def _in(text: str) -> list[str]:
    """Give the secrets that may be in the text, in the order in which they became known."""
    if not _by_beginning:
        return []
    pieces = {text[i : i + _SHORTEST] for i in range(len(text) - _SHORTEST + 1)}
    found = {value for piece in pieces & _by_beginning.keys() for value in _by_beginning.get(piece, ())}
    return [value for value in list(_forms) if value in found] if found else []


def without_beginning(text: str) -> str:
    """Take away the end of a text that was cut, where it is how a known secret begins."""
    for length in range(max(map(len, itertools.chain(*_forms.values())), default=0) - 1, _SHORTEST - 1, -1):
        end = text[-length:]
        if any(form.startswith(end) for v in _by_beginning.get(end[:_SHORTEST], ()) for form in _forms.get(v, ())):
            return text[:-length] + REMOVED
    return text


def set_up(*, level: str = "warning", file: str | None = None, stream: TextIO | None = None) -> Callable[[], None]:
    """Log to `file` (made with mode 0600), else to `stream`, else to standard error; gives what takes it back.

    Tracebacks of uncaught errors go the same way. Raises: ConfigError when the file cannot be written.
    """
    import logging

    handler = logging.StreamHandler(stream if file is None else _opened(file))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(_without_secrets)
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in ("httpx2", "httpcore2", "asyncio"):
        # They log addresses with their queries, one line a request.
        logging.getLogger(name).setLevel(logging.WARNING)
    Secret.heard_by = known
    restore_hooks = _catch_uncaught(logging.getLogger("valetkey"))

    def take_back() -> None:
        restore_hooks()
        Secret.heard_by = None
        _forms.clear()
        _by_beginning.clear()
        root.removeHandler(handler)
        root.setLevel(before)
        if file is not None:
            handler.stream.close()

    return take_back


def _opened(file: str) -> TextIO:
    import os

    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(file, flags, 0o600)
        os.fchmod(descriptor, 0o600)  # it may be an old one
        return open(descriptor, "a", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(
            f"log.file: {file} cannot be written: {error.strerror}", hint="set log.file to a file that you may write"
        ) from error


def _without_secrets(record: logging.LogRecord) -> bool:
    """Rewrite the record before it is formatted: message, traceback and stack."""
    import logging

    try:
        record.msg = redact(record.getMessage())
    except (TypeError, ValueError):  # the message's own arguments do not fit it
        record.msg = redact(str(record.msg))
    record.args = None
    if record.exc_info and not record.exc_text:
        record.exc_text = logging.Formatter().formatException(record.exc_info)
    if record.exc_text:
        record.exc_text = redact(record.exc_text)
    if record.stack_info:
        record.stack_info = redact(record.stack_info)
    return True


def _catch_uncaught(logger: logging.Logger) -> Callable[[], None]:
    """Send tracebacks of uncaught errors, of any thread, through the log."""
    import sys
    import threading
    from types import TracebackType

    before = sys.excepthook, threading.excepthook

    def in_main(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        logger.critical("an error that nobody caught", exc_info=(kind, error, traceback))

    def in_thread(caught: threading.ExceptHookArgs) -> None:
        if caught.exc_value is not None and caught.exc_type is not SystemExit:
            in_main(caught.exc_type, caught.exc_value, caught.exc_traceback)

    sys.excepthook, threading.excepthook = in_main, in_thread

    def restore() -> None:
        sys.excepthook, threading.excepthook = before

    return restore

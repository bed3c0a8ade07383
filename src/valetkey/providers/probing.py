"""Finds out what a server of the user's own speaks, and whether it is well, without asking a model anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never
from urllib.parse import urlsplit

from valetkey.credential import Secret
from valetkey.errors import ProviderCheckFailed, TransportError
from valetkey.http import HttpClient, Response
from valetkey.inject import join
from valetkey.provider import DialectId
from valetkey.providers.custom import check_base_url, inject_for, models_path, normalise

__all__ = ["Answering", "check", "models_request", "probe_dialects"]

CHECK_SECONDS = 10.0
# Routes that are not there. Anything else (400, 401, 422, 500) comes from code behind the route.
_ABSENT = frozenset({301, 302, 303, 307, 308, 404, 405, 410, 501, 502, 503, 504})
_DIALECTS: tuple[DialectId, ...] = ("openai-chat", "openai-responses", "anthropic-messages", "gemini")


@dataclass(frozen=True, kw_only=True)
class Answering:
    """A dialect that the server speaks, and the base URL at which it does."""

    dialect: DialectId
    base_url: str


async def probe_dialects(
    base_url: str, *, key: Secret | None, http: HttpClient, allow_http: bool = False
) -> list[Answering]:
    """Ask each dialect's route for nothing (an empty JSON object) and see which are there, OpenAI chat first.

    Raises: InvalidBaseUrl; ProviderCheckFailed when the server is not to be had or none answers.
    """
    check_base_url(normalise(base_url, "none"), with_key=bool(key), allow_http=allow_http)
    control = await _post(http, join(normalise(base_url, "none"), "/valetkey-no-such-route"), {})
    found: list[Answering] = []
    for dialect in _DIALECTS:
        for base in _bases(base_url, dialect):
            if _is_there(await _ask(http, dialect, base, key), control):
                found.append(Answering(dialect=dialect, base_url=base))
                break
    if not found:
        host = urlsplit(base_url.strip()).netloc
        refused = control.status in (401, 403)
        raise ProviderCheckFailed(
            f"{host} wants a key before it says what it speaks" if refused else f"{host} answers in no known dialect",
            hint="give its key with `--key -`, or say with --dialect what it speaks"
            if refused
            else "check the base URL, or say with --dialect what it speaks",
        )
    return found


def _bases(base_url: str, dialect: DialectId) -> list[str]:
    base = normalise(base_url, dialect)
    if dialect in ("openai-chat", "openai-responses") and not urlsplit(base).path:
        return [base, f"{base}/v1"]
    return [base]


def _is_there(answer: Response, control: Response) -> bool:
    if answer.status in _ABSENT or answer.headers.get("content-type", "").startswith("text/html"):
        return False
    # A server that answers everything alike (a gatekeeper's 401, a catch-all's 200) has told nothing.
    return answer.status != control.status


async def _ask(http: HttpClient, dialect: DialectId, base: str, key: Secret | None) -> Response:
    match dialect:
        case "openai-chat":
            return await _post(http, join(base, "/chat/completions"), _headers(dialect, key))
        case "openai-responses":
            return await _post(http, join(base, "/responses"), _headers(dialect, key))
        case "anthropic-messages":
            return await _post(http, join(base, "/v1/messages"), _headers(dialect, key))
        case "gemini":
            return await _send(http, "GET", join(base, "/v1beta/models"), _headers(dialect, key), None)
        case "none":
            raise ValueError("there is nothing to ask without a dialect")
        case _:
            assert_never(dialect)


async def _post(http: HttpClient, url: str, headers: Mapping[str, str]) -> Response:
    return await _send(http, "POST", url, {**headers, "content-type": "application/json"}, b"{}")


async def _send(http: HttpClient, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> Response:
    try:
        return await http.request(method, url, headers=headers, body=body, timeout_seconds=CHECK_SECONDS)
    except TransportError as error:
        raise ProviderCheckFailed(error.message, hint=error.hint) from error


def _headers(dialect: DialectId, key: Secret | None) -> dict[str, str]:
    templates = inject_for(dialect).set
    if not key:
        return {name.rstrip("?"): text for name, text in templates.items() if "{key}" not in text}
    return {name.rstrip("?"): text.replace("{key}", key.reveal()) for name, text in templates.items()}


def models_request(base_url: str, dialect: DialectId, key: Secret | None) -> tuple[str, dict[str, str]]:
    """Give URL and headers of the request that lists the models of a server with this normalised base URL."""
    return join(base_url, models_path(dialect)), _headers(dialect, key)


async def check(base_url: str, dialect: DialectId, *, key: Secret | None, http: HttpClient) -> None:
    """Ask for the model list: is the server up, is it the right one, does it take the key?

    Raises: ProviderCheckFailed, whose message says which of these it is.
    """
    url, headers = models_request(base_url, dialect, key)
    answer = await _send(http, "GET", url, headers, None)
    host = urlsplit(url).netloc
    if answer.status in (401, 403):
        what = "did not accept the key" if key else "wants a key"
        raise ProviderCheckFailed(f"{host} {what} (HTTP {answer.status})", hint="give the key that this server knows")
    if answer.status == 429:
        return
    if answer.status >= 500:
        raise ProviderCheckFailed(f"{host} has a fault (HTTP {answer.status})", hint="look at its log, then try again")
    if not 200 <= answer.status < 300 or answer.headers.get("content-type", "").startswith("text/html"):
        raise ProviderCheckFailed(
            f"{host} lists no models at {urlsplit(url).path} (HTTP {answer.status})",
            hint="check the base URL and the dialect; an OpenAI base URL mostly ends in /v1",
        )

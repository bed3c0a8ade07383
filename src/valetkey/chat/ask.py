"""Asks a model and gives its answer while it comes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import httpx2

from valetkey.access import Access
from valetkey.characters import UNSEEN
from valetkey.credential import Credential, secrets_of
from valetkey.dialect import Dialect, Message, Part, Question
from valetkey.dialects import question_for
from valetkey.dialects.reading import error_in
from valetkey.errors import (
    KeyForbidden,
    NeedsLogin,
    ProviderFault,
    RequestRefused,
    UnclearAnswer,
    UnknownModel,
    ValetkeyError,
)
from valetkey.http import HttpClient
from valetkey.log import forms

__all__ = ["ask", "cleaned"]

# A model may think for minutes before its first word.
SILENCE_SECONDS = 600.0
# The last event of the responses dialect repeats the whole answer.
MAX_ANSWER_BYTES = 16 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
_SHOWN_CHARACTERS = 300
_UNPRINTABLE = re.compile(rf"[\x00-\x1f{UNSEEN}]+")
# What providers make of a key that they refuse: `sk-ab***wxyz`. The ends that they leave are nobody's business either.
_MASKED = re.compile(r"\S*(?:\*{3,}|•{3,})\S*")


@dataclass(frozen=True, kw_only=True)
class _Sent:
    """One attempt: what was sent with which access, and who reads the answer."""

    access: Access
    dialect: Dialect
    question: Question
    model: str

    @property
    def host(self) -> str:
        return urlsplit(self.access.url(self.question.path)).netloc.rsplit("@", 1)[-1]


def ask(
    access: Access,
    *,
    model: str,
    messages: Sequence[Message],
    http: HttpClient,
    renew: Callable[[Access], Access],
    stream: bool = True,
    max_output_tokens: int | None = None,
) -> Iterator[Part]:
    """Give the parts of the answer as they come; the last one has `end` or `done`.

    On HTTP 401 `renew` is called once for an access with another credential. Closing the iterator closes the
    connection. Raises: NeedsLogin (401), KeyForbidden (403), UnknownModel (404), RequestRefused (other 4xx),
    ProviderFault (429, 5xx, an error within the stream, a stream that breaks off), UnclearAnswer, TransportError, and
    what `renew` raises. No message holds a secret of the access.
    """
    renewed = False
    leave_out: frozenset[str] = frozenset()
    while True:
        dialect, question = question_for(
            access.provider,
            model=model,
            messages=messages,
            parameters={} if access.credential is None else access.credential.parameters,
            stream=stream,
            max_output_tokens=max_output_tokens,
        )
        body = {name: value for name, value in question.body.items() if name not in leave_out}
        sent = _Sent(access=access, dialect=dialect, question=replace(question, body=body), model=model)
        with _send(sent, http) as answer:
            if answer.status_code == 200:
                yield from _parts(sent, answer)
                return
            refused = _Refused.read(answer)
        if refused.status == 401 and not renewed and access.credential is not None:
            renewed = True
            other = renew(access)
            if other.credential is not None and secrets_of(other.credential) != secrets_of(access.credential):
                access = other
                continue
        if refused.status in (400, 422) and "stream_options" in body and b"stream_options" in refused.body:
            # Older servers refuse a field that they do not know; the answer then comes without counts.
            leave_out = frozenset({"stream_options"})
            continue
        raise _error(sent, refused)


def _send(sent: _Sent, http: HttpClient) -> AbstractContextManager[httpx2.Response]:
    url = sent.access.url(sent.question.path)
    wanted = {"content-type": "application/json", "accept": "text/event-stream, application/json"}
    return http.stream(
        sent.question.method,
        sent.access.placed(url),
        headers=sent.access.headers(url, {**wanted, **sent.question.headers}),
        body=json.dumps(sent.question.body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"),
        read_timeout_seconds=SILENCE_SECONDS,
    )


# --- reading an answer -----------------------------------------------------------------------


def _parts(sent: _Sent, answer: httpx2.Response) -> Iterator[Part]:
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    read = _streamed(sent, answer) if kind == "text/event-stream" else iter([_whole(sent, answer)])
    ended = False
    for part in read:
        if part.error is not None:
            raise _fault(sent, part)
        ended = ended or part.end is not None or part.done
        yield part
        if part.done:
            return
    if not ended:
        raise _broken_off(sent)


def _streamed(sent: _Sent, answer: httpx2.Response) -> Iterator[Part]:
    # Always UTF-8, whatever the header says, and a leading BOM does not count (HTML standard, section 9.2.6).
    answer.encoding = "utf-8-sig"
    try:
        for event in httpx2.EventSource(answer, max_event_size=MAX_ANSWER_BYTES):
            if event.data:
                yield sent.dialect.read(event=event.event, data=event.data)
    except httpx2.TimeoutException:
        raise
    except httpx2.TransportError as error:
        raise _broken_off(sent) from error


def _whole(sent: _Sent, answer: httpx2.Response) -> Part:
    body = _up_to(answer, MAX_ANSWER_BYTES + 1)
    if len(body) > MAX_ANSWER_BYTES:
        raise UnclearAnswer(f"the answer of {sent.host} is too long", hint="ask for less: --max-tokens")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise UnclearAnswer(
            f"the answer of {sent.host} is not JSON",
            hint=f"check base_url with `valetkey providers show {sent.access.provider.id}`",
            provider=sent.access.provider.id,
        ) from None
    return sent.dialect.read_whole(value)


def _up_to(answer: httpx2.Response, limit: int) -> bytes:
    received = bytearray()
    for chunk in answer.iter_bytes():
        received += chunk
        if len(received) >= limit:
            break
    return bytes(received[:limit])


# --- what went wrong -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Refused:
    status: int
    retry_after: str
    body: bytes

    @classmethod
    def read(cls, answer: httpx2.Response) -> _Refused:
        return cls(
            status=answer.status_code,
            retry_after=answer.headers.get("retry-after", ""),
            body=_up_to(answer, MAX_ERROR_BYTES),
        )

    def message(self) -> str:
        try:
            said = error_in(json.loads(self.body))
        except (ValueError, RecursionError):
            return ""
        return "" if said is None else said.message


def _error(sent: _Sent, refused: _Refused) -> ValetkeyError:
    provider, ref, status = sent.access.provider.id, sent.access.ref, refused.status
    said = cleaned(refused.message(), sent.access.credential)
    why = f": {said}" if said else ""
    if status == 401:
        return NeedsLogin(
            f"{provider} does not accept the credential of {ref} (HTTP 401){why}",
            hint=_new_credential(sent.access),
            provider=provider,
        )
    if status == 403:
        return KeyForbidden(
            f"{ref} may not use {sent.model} at {sent.host} (HTTP 403){why}",
            hint=f"choose another model: `valetkey models {provider}`, or another account: -m {provider}@ACCOUNT/MODEL",
            provider=provider,
        )
    if status == 404:
        return UnknownModel(
            f"{provider} knows no model {sent.model!r} at {sent.host} (HTTP 404){why}",
            hint=f"see `valetkey models {provider} --refresh`",
            provider=provider,
        )
    if status == 429 or status >= 500:
        return ProviderFault(f"{provider} answered HTTP {status}{why}", hint=_later(refused), provider=provider)
    if 300 <= status < 400 or status < 200:
        return UnclearAnswer(
            f"{sent.host} sends us elsewhere (HTTP {status}), which is not followed with a credential",
            hint=f"correct base_url: `valetkey providers show {provider}`",
            provider=provider,
        )
    return RequestRefused(
        f"{provider} refused the request (HTTP {status}){why}",
        hint=f"check the model's name with `valetkey models {provider}`",
        provider=provider,
    )


def _new_credential(access: Access) -> str:
    command = f"`valetkey login {access.ref.provider}`"
    if access.source == "stored":
        return f"log in again: {command[:-1]} --account {access.ref.account}`"
    return f"correct {access.variable}, or run {command}" if access.variable else f"it needs a key: run {command}"


def _later(refused: _Refused) -> str:
    # RFC 9110 section 10.2.3: seconds or a date; a date says little in a hint.
    if re.fullmatch(r"\d{1,6}", refused.retry_after):
        return f"try again in {int(refused.retry_after)} s"
    return "try again later, or ask another provider with -m"


def _fault(sent: _Sent, part: Part) -> ProviderFault:
    said = cleaned(part.message, sent.access.credential)
    kind = cleaned(part.error or "error", sent.access.credential)
    return ProviderFault(
        f"{sent.access.provider.id} broke off with {kind}" + (f": {said}" if said else ""),
        hint="try again later, or ask another provider with -m",
        provider=sent.access.provider.id,
    )


def _broken_off(sent: _Sent) -> ProviderFault:
    return ProviderFault(
        f"the answer of {sent.host} broke off before its end", hint="ask again", provider=sent.access.provider.id
    )


def cleaned(text: str, credential: Credential | None) -> str:
    """Give a server's words fit to be shown: one short line, without any secret of the credential in any usual form."""
    for secret in () if credential is None else secrets_of(credential).values():
        for form in forms(secret.reveal()):
            text = text.replace(form, "…")
    line = " ".join(_UNPRINTABLE.sub(" ", _MASKED.sub("…", text)).split())
    return line if len(line) <= _SHOWN_CHARACTERS else line[: _SHOWN_CHARACTERS - 1] + "…"

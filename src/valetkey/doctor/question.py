"""The probe of an account as a client of the gateway sends it, and what the answer says."""

from __future__ import annotations

import http.client
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from valetkey import serving
from valetkey.credential import CredentialRef
from valetkey.errors import GatewayFailed, ValetkeyError
from valetkey.inject import fill
from valetkey.provider import Call, Provider
from valetkey.store import Record

__all__ = ["MOST_BYTES", "Answer", "Question", "question_for", "read"]

# Of an answer; what is wrong stands at its beginning.
MOST_BYTES = 65536


@dataclass(frozen=True, kw_only=True)
class Question:
    """One request by base URL: `path` is behind the account's name."""

    ref: CredentialRef
    verb: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    accepted: tuple[int, ...] = ()

    def as_bytes(self) -> bytes:
        """Write it as HTTP/1.1; the connection is closed behind the answer."""
        lines = [f"{self.verb} /{self.ref}{self.path} HTTP/1.1", "host: localhost", "connection: close"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if self.body:
            lines.append(f"content-length: {len(self.body)}")
        return "\r\n".join((*lines, "", "")).encode() + self.body


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came: the provider's status, or what the gateway said in its place, with the code of that."""

    status: int
    code: str = ""
    error: ValetkeyError | None = None


def question_for(provider: Provider, record: Record) -> Question | None:
    """Give what asks whether this login is good; None where its provider has nothing that can be asked by base URL."""
    method = provider.method(record.credential.method)
    probe: Call | None = (method.probe if method is not None else None) or provider.api.probe
    if probe is None or (probe.get is None and probe.post is None):
        return None
    verb, path = ("GET", probe.get) if probe.get is not None else ("POST", probe.post or "")
    path = fill(path, record.credential.parameters).removeprefix(record.base_url)
    headers = {name.lower(): value for name, value in {**provider.api.headers, **probe.headers}.items()}
    if not path.startswith("/") or any("{" in value for value in headers.values()):
        return None
    if probe.body is not None:
        headers.setdefault("content-type", "application/json")
    return Question(
        ref=record.ref,
        verb=verb,
        path=path,
        headers=headers,
        body=(probe.body or "").encode(),
        accepted=probe.accepted,
    )


def read(question: Question, raw: bytes) -> Answer:
    """Read an answer, and judge it as the direct probe's is. Raises: GatewayFailed, where it is none."""
    try:
        answer = http.client.HTTPResponse(cast(Any, _Received(raw)), method=question.verb)
        answer.begin()
        status = answer.status
        # What is longer was cut off.
        content = b"" if len(raw) >= MOST_BYTES else answer.read()
    except (http.client.HTTPException, OSError) as error:
        raise GatewayFailed(
            "the gateway gave no answer" if not raw else "the gateway's answer cannot be read",
            hint="see `run/serve.log` of the home folder, and start it anew: `valetkey down --now && valetkey up`",
        ) from error
    ours = _of_the_gateway(content)
    if ours is not None:
        return Answer(status=status, code=str(ours.get("code", "")), error=_told(ours))
    return Answer(status=status, error=_of_the_provider(question, status))


def _of_the_gateway(content: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(content)["error"]
        return found if str(found["type"]).startswith("valetkey_") else None
    except (ValueError, KeyError, TypeError):
        return None


def _told(ours: dict[str, Any]) -> ValetkeyError:
    """Give the gateway's refusal to a person at this machine: its own hint is for the tool inside of a run."""
    error, rule, line = serving.error_from(ours), ours.get("rule"), ours.get("allow_line")
    if isinstance(rule, dict) and rule.get("place"):
        error.message += f" ({rule['place']})"
    if isinstance(line, str) and line:
        error.hint = f"if that is needed, add to the policy: `{line}`"
    return error


def _of_the_provider(question: Question, status: int) -> ValetkeyError | None:
    # As flows/probe.py has it: 403 and 429 come to a credential that is known.
    if 200 <= status < 300 or status in (403, 429, *question.accepted):
        return None
    what = "rejected what the gateway put in" if status == 401 else "answered otherwise than without the gateway"
    return GatewayFailed(
        f"the provider {what} (HTTP {status})",
        hint=f"see `valetkey trace --account {question.ref}`",
        provider=question.ref.provider,
    )


class _Received:
    """What http.client reads from in place of a connection."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def makefile(self, _mode: str) -> io.BytesIO:
        """Give it as a file."""
        return io.BytesIO(self._raw)

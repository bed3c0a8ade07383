"""The API of a fake provider: models, who one is, answers in OpenAI's chat dialect; anything else is told back."""

from __future__ import annotations

import base64
import binascii
import json
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from valetkey.testing.local_server import Answer, Received

if TYPE_CHECKING:
    from valetkey.testing.provider import Fault

__all__ = ["MODEL", "SAID", "Api", "answered"]

MODEL = "fake-model"
SAID = "the fake model has answered"
_WAIT_SECONDS = 0.05


class Api:
    """Answers whoever shows a credential that `takes` says yes to.

    Each of `faults` stands with how often it is still to be given, None for ever.
    """

    def __init__(
        self,
        *,
        takes: Callable[[str], bool],
        faults: list[tuple[Fault, int | None]],
        held_by: threading.Event | None,
        stopping: threading.Event,
    ) -> None:
        self.refused = 0
        self._takes = takes
        self._faults = faults
        self._held_by = held_by
        self._stopping = stopping
        self._lock = threading.Lock()

    def answer(self, request: Received) -> Answer:
        """Answer a request, once it may be."""
        # A test that fails never sets it: the server's end lets go too.
        while self._held_by is not None and not self._held_by.wait(_WAIT_SECONDS):
            if self._stopping.is_set():
                break
        with self._lock:
            fault = self._fault(request.path)
            taken = fault is not None or self._takes(_shown(request))
            self.refused += not taken
        if fault is not None:
            return Answer(status=fault.status, headers=fault.headers, body=fault.body)
        if not taken:
            error = {"error": {"message": "the credential is not good", "type": "authentication_error"}}
            return answered(error, status=401, **{"www-authenticate": "Bearer"})
        return _said(request)

    def _fault(self, path: str) -> Fault | None:
        for place, (fault, left) in enumerate(self._faults):
            if fault.path in (None, path) and left != 0:
                self._faults[place] = (fault, None if left is None else left - 1)
                return fault
        return None


def answered(value: object, *, status: int = 200, **headers: str) -> Answer:
    """Give an answer in JSON."""
    sent = {"content-type": "application/json", "cache-control": "no-store", **headers}
    return Answer(status=status, headers=sent, body=json.dumps(value).encode())


def _said(request: Received) -> Answer:
    if request.path.endswith("/models"):
        return answered({"object": "list", "data": [{"id": MODEL, "object": "model"}]})
    if request.path.endswith("/chat/completions") and request.method == "POST":
        return _chat(request)
    return answered(
        {"name": "Fay Kerr", "email": "fay@example.org", "plan": "test", "method": request.method, "path": request.path}
    )


def _chat(request: Received) -> Answer:
    usage = {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}
    about = {"id": "fake-1", "created": 0, "model": MODEL}
    message = {"role": "assistant", "content": SAID}
    if not request.json.get("stream"):
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return answered({**about, "object": "chat.completion", "choices": [choice], "usage": usage})
    chunks: list[dict[str, object]] = [
        {"choices": [{"index": 0, "delta": message, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": usage},
    ]
    lines = [json.dumps({**about, "object": "chat.completion.chunk", **chunk}) for chunk in chunks]
    body = "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"])
    return Answer(headers={"content-type": "text/event-stream"}, body=body.encode())


def _shown(request: Received) -> str:
    """Give all of a request in which a credential may stand: its headers, Basic decoded, and its query."""
    found = [*request.headers.values(), *request.query.values()]
    scheme, _, pair = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            found.append(base64.b64decode(pair, validate=True).decode())
        except (binascii.Error, UnicodeDecodeError):
            """It is no credential."""
    return "\n".join(found)

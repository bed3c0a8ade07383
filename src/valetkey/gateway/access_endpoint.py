"""What a run asks the gateway itself, at `/valetkey/access` of its own socket: for access, and what became of it.

It sees and changes its own requests and nothing else. Deciding on them is done at the control socket, where no run is.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from valetkey.clock import written
from valetkey.errors import ValetkeyError
from valetkey.gateway import answers
from valetkey.gateway.decide import Refuse
from valetkey.gateway.route import INSIDE, decided
from valetkey.gateway.runs import Run

if TYPE_CHECKING:
    from valetkey.credential import CredentialRef
    from valetkey.gateway.access_requests import AccessRequest
    from valetkey.gateway.answers import Answer
    from valetkey.gateway.exchange import Exchange
    from valetkey.gateway.ring import LiveKey

__all__ = ["PATH", "is_for_us", "serve", "way_to_ask"]

PATH = "/valetkey/access"
MAX_BYTES = 16 * 1024
# Longer than a tool waits for an answer is of no use.
_LONGEST_WAIT_SECONDS = 60.0
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*(?:@[\w.-]+)?\Z", re.ASCII)
_METHOD = re.compile(r"[A-Z]{1,20}\Z")
_WHY = "WHY IT IS NEEDED"
_EXAMPLE = '{"method": "GET", "url": "https://HOST/PATH", "reason": "…"}, or {"grant": "PROVIDER", "reason": "…"}'


def is_for_us(url: bytes) -> bool:
    """Say whether a request of a run, in origin form, is one to the gateway itself."""
    path = url.partition(b"?")[0]
    return path == PATH.encode() or path.startswith(PATH.encode() + b"/")


def way_to_ask(refused: Refuse) -> Mapping[str, object] | None:
    """Give how a run asks for what it was refused, where a person may let it have that; None where nobody may."""
    target = refused.target
    if refused.allows and target is not None and "*" not in target.path:
        method = refused.allows.partition(" ")[0]
        url = (
            f"{target.host}:{target.port}"
            if method == "CONNECT"
            else f"{target.scheme}://{target.authority}{target.path}"
        )
        return _asking({"method": method, "url": url})
    if refused.code == "unknown_provider" and refused.named:
        return _asking({"grant": refused.named}) if _NAME.match(refused.named) else None
    return None


def _asking(body: dict[str, str]) -> Mapping[str, object]:
    body["reason"] = _WHY
    url = INSIDE + PATH
    return {"url": url, "body": body, "command": f"curl -sS {url} -d {shlex.quote(json.dumps(body))}"}


async def serve(exchange: Exchange) -> None:
    """Answer one of these requests, whose body is here."""
    live = exchange.live
    if live is None or not isinstance(live.key, Run):
        return
    path, _, query = exchange.url.decode("latin-1").partition("?")
    named = path.removeprefix(PATH).strip("/")
    if exchange.method == b"POST" and not named:
        exchange.answer(_asked(exchange, live, live.key))
    elif exchange.method == b"GET" and not named:
        requests = exchange.gateway.access.of(live.key.id)
        exchange.answer(answers.access(200, {"requests": [_told(request) for request in requests]}))
    elif exchange.method == b"GET":
        await exchange.gateway.access.decided(live.key.id, named, seconds=_wait_in(query))
        found = [request for request in exchange.gateway.access.of(live.key.id) if request.id == named]
        if live.ended or not found:
            exchange.answer(_unknown())
        else:
            exchange.answer(answers.access(200, _told(found[0])))
    else:
        exchange.answer(_unknown())


def _asked(exchange: Exchange, live: LiveKey, run: Run) -> Answer:
    try:
        body = json.loads(b"".join(exchange.up.waiting))
        method, url, grant, reason = (_text(body, name) for name in ("method", "url", "grant", "reason"))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return answers.failed(400, "malformed", "the request for access cannot be read", f"send {_EXAMPLE}")
    access = exchange.gateway.access
    if bool(grant) == bool(url):
        return answers.failed(400, "malformed", "the request for access is for nothing", f"send {_EXAMPLE}")
    if grant:
        ref = _account(exchange, grant)
        if ref is None:
            return answers.failed(
                404, "unknown_provider", "there is no provider of this name", "see `valetkey providers list`, outside"
            )
        if ref in run.all_grants:
            return answers.access(200, {"state": "allowed", "grant": str(ref), "message": _ALLOWED})
        made = access.ask(run, grant=ref, reason=reason)
    else:
        method = method or "GET"
        if not _METHOD.match(method):
            return answers.failed(400, "malformed", "the request for access has no method", f"send {_EXAMPLE}")
        decision = decided(method, url, live.client, live.policy)
        if not isinstance(decision, Refuse):
            return answers.access(200, {"state": "allowed", "message": _ALLOWED})
        target = decision.target
        if not decision.allows or target is None or "*" in target.path:
            # Off limits, near, malformed: what no rule opens a person does not open in passing either.
            return answers.refused(decision, run=run.id)
        method = decision.allows.partition(" ")[0]
        shown = f"{target.scheme}://{target.authority}{target.path}"
        made = access.ask(run, method=method, url=shown, allows=decision.allows, grant=None, reason=reason)
    if isinstance(made, str):
        return answers.failed(429, "access_full", made, "go on without, or wait until a person has decided")
    return answers.access(202 if made.state == "pending" else 200, _told(made))


def _text(body: dict[str, object], name: str) -> str:
    value = body.get(name, "")
    if not isinstance(value, str):
        raise TypeError
    return value


def _account(exchange: Exchange, name: str) -> CredentialRef | None:
    if not _NAME.match(name):
        return None
    broker = exchange.gateway.broker
    try:
        ref = broker.resolve(name)
        broker.catalogue.get(ref.provider)
    except ValetkeyError:
        # Its words name others that are near: what there is on this machine is none of a run's business.
        return None
    return ref


def _wait_in(query: str) -> float:
    try:
        return min(max(0.0, float(parse_qs(query).get("wait", ["0"])[0])), _LONGEST_WAIT_SECONDS)
    except ValueError:
        return 0.0


def _unknown() -> Answer:
    return answers.failed(
        404, "access_unknown", "this run has asked for no such thing", f"ask: POST {INSIDE}{PATH}, with {_EXAMPLE}"
    )


# --- what is told ----------------------------------------------------------------------------

_ALLOWED = "the policy lets it through already: send it"


def _told(request: AccessRequest) -> dict[str, object]:
    told: dict[str, object] = {
        "id": request.id,
        "state": request.state,
        "allows": request.allows or f"--grant {request.grant}",
        "reason": request.reason,
        "asked_at": written(request.asked_at),
        "scope": request.scope,
        "poll": f"{INSIDE}{PATH}/{request.id}?wait={_LONGEST_WAIT_SECONDS:.0f}",
        "message": _message(request),
    }
    if request.grant is not None and request.state == "approved":
        told |= {"base_url": f"{INSIDE}/{request.grant}", "placeholder": request.placeholder}
    return told


def _message(request: AccessRequest) -> str:
    match request.state:
        case "pending":
            return f"a person has to decide, outside of the run: `valetkey approvals approve {request.id}`"
        case "denied":
            return "a person said no: asking again changes nothing"
        case "used":
            return "it was let through once, and that was used: ask again if it is needed again"
        case "approved" if request.grant is not None:
            return "use the base URL, with the placeholder where the credential goes or without one"
        case "approved" if request.scope == "once":
            return "send the request again: it is let through once"
        case "approved":
            return "send the request again"

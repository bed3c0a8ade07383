"""The way out of an exchange: its request is written anew, with the credential, and sent to the provider."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from valetkey.errors import AuditError, NeedsLogin, NotLoggedIn, StoreError, ValetkeyError
from valetkey.gateway import admission, answers, outgoing, presented
from valetkey.gateway.connect import open_tunnel

if TYPE_CHECKING:
    from valetkey.credential import Credential
    from valetkey.gateway.answers import Answer
    from valetkey.gateway.credentials import Placement, Ready
    from valetkey.gateway.decide import Forward
    from valetkey.gateway.exchange import Exchange
    from valetkey.gateway.plan import Plan
    from valetkey.gateway.ring import LiveKey
    from valetkey.gateway.upstream import UpstreamConnection

__all__ = ["fetched", "go", "send"]


def go(exchange: Exchange) -> None:
    """Do what was decided: open the tunnel, or send it on once there is a connection and a credential."""
    plan = exchange.plan
    if plan is None or plan.forward is None:
        return
    if plan.forward.how in ("intercept", "tunnel"):
        exchange.spawn(open_tunnel, plan)
    elif plan.endpoint is not None:
        exchange.spawn(_serve_here, plan)
    elif plan.ref is None:
        send(exchange, None)
    else:
        repeat = exchange.repeat
        ready = None if repeat is None else repeat.ready
        if ready is None or exchange.begun >= ready.until:
            ready = exchange.gateway.credentials.ready(plan.ref)
        if ready is None:
            exchange.spawn(_fetch_and_send, plan)
        else:
            send(exchange, ready)


async def _serve_here(exchange: Exchange, plan: Plan) -> None:
    """Answer a run out of its account's endpoint; what that gives is a use of the account."""
    live, head = exchange.live, exchange.head
    if live is None or head is None:
        return
    answer = await exchange.gateway.endpoints.answer(plan, live, head)
    if live.ended:
        exchange.answer(admission.ended(live), close=True)
    elif answer.status != 200 or _noted(exchange, live, plan):
        exchange.answer(answer)


async def _fetch_and_send(exchange: Exchange, plan: Plan) -> None:
    if plan.forward is not None and exchange.live is not None:
        ready = await fetched(exchange, plan.forward, exchange.live)
        send(exchange, ready)


async def fetched(
    exchange: Exchange, forward: Forward, live: LiveKey, *, rejected: Credential | None = None
) -> Ready | None:
    """Ask for the credential; a run's request waits for a login where that is what is missing.

    None where it has waited until nobody wants it any more. Raises: as `Credentials.fetch`.
    """
    gateway, ref = exchange.gateway, forward.grant
    if ref is None:
        return None
    hold = gateway.settings.hold_for_login_seconds if live.client.kind == "run" else 0.0
    ends = gateway.now() + hold
    while True:
        generation = gateway.generation(str(ref))
        try:
            return await gateway.credentials.fetch(ref, live.client, rejected=rejected)
        except ValetkeyError as error:
            left = ends - gateway.now()
            # What was sent and refused without the login being over is the provider's to answer: it may be the path.
            missing = error.exit_status == 3 and (rejected is None or isinstance(error, NeedsLogin | NotLoggedIn))
            if not missing or left <= 0 or gateway.draining:
                raise
            if gateway.generation(str(ref)) != generation:
                continue  # somebody has logged in meanwhile
            exchange.give(left + gateway.settings.response_seconds)
            outcome = await gateway.approvals.wait_for_login(
                forward,
                client=live.client,
                name=live.key.name,
                reason=error.message,
                generation=generation,
                seconds=left,
            )
            exchange.give(gateway.settings.response_seconds)
            if outcome != "approved":
                raise


def send(exchange: Exchange, ready: Ready | None, *, fresh_connection: bool = False) -> None:
    """Write the request anew, with the credential, and send it."""
    plan, head, live = exchange.plan, exchange.head, exchange.live
    if plan is None or head is None or live is None or exchange.finished:
        return
    exchange.ready = ready
    if plan.server is not None and not exchange.gateway.mcp.lets_out(exchange, plan.server):
        if not exchange.finished:
            exchange.when_whole(functools.partial(send, exchange, ready))
        return
    placement = None if ready is None else ready.placement(plan.origin)
    in_body = None if placement is None else placement.in_body
    if in_body is not None and not _put_into_body(exchange, live, in_body):
        exchange.when_whole(functools.partial(send, exchange, ready))
        return
    if exchange.finished:
        return
    repeat = exchange.repeat
    if repeat is not None and repeat.ready is ready:
        out = repeat.out
    else:
        out = outgoing.head_for(exchange.method, plan, head, placement, exchange.token)
        told = _untaken(exchange, live, placement, out)
        if told is not None:
            exchange.answer(told)
            return
        if repeat is not None:
            repeat.ready, repeat.out = ready, out
    if ready is not None and not _noted(exchange, live, plan):
        return
    sent = out + outgoing.framing(head, exchange.method, length=exchange.length, chunked=exchange.up.chunked)
    upstream = None if fresh_connection else exchange.gateway.pool.take(plan.pool_key)
    if upstream is None:
        exchange.spawn(_dial_and_send, plan, sent)
    else:
        _attach(exchange, upstream, sent)


def _untaken(exchange: Exchange, live: LiveKey, placement: Placement | None, out: bytes) -> Answer | None:
    """Give the answer where the head would carry what stands for a credential, or one that is not ours."""
    run = exchange.client.run
    if run is None:
        taken = out.find(live.marker) < 0 and presented.within(out) is None
        return None if taken else answers.key_in_request()
    if out.find(live.marker) >= 0:
        return answers.placeholder_in_request(run)
    if placement is not None and admission.brings_its_own(exchange.url, placement, exchange.token):
        return answers.foreign_credential(run, "the address holds a credential that is not the run's")
    return None


def _noted(exchange: Exchange, live: LiveKey, plan: Plan) -> bool:
    """Put the use into the audit, before its first byte goes out; answers, and gives False, where that fails."""
    audit = exchange.gateway.audit
    if audit is not None:
        try:
            audit.note(live.who, plan.account)
        except (AuditError, StoreError) as error:
            exchange.answer(answers.of_error(error))
            return False
    return True


def _put_into_body(exchange: Exchange, live: LiveKey, value: bytes) -> bool:
    """Put the credential where the client wrote its key in the body; False as long as that is not here whole."""
    if not exchange.up.complete:
        return False
    token = exchange.token
    if exchange.client.run is not None and exchange.plan is not None and exchange.plan.ref is not None:
        token = admission.in_body(live, exchange.plan.ref, b"".join(exchange.up.waiting))
        if not token:
            return True  # it shows none there, and what it shows is no key of ours
    body = outgoing.with_key(exchange.up.waiting, token, value)
    if body is None:
        exchange.answer(answers.key_in_request())
        return True
    exchange.length = exchange.up.become(body)
    return True


async def _dial_and_send(exchange: Exchange, plan: Plan, head: bytes) -> None:
    gateway = exchange.gateway
    upstream = await gateway.dial(plan)
    if exchange.finished:
        gateway.pool.put(upstream)
        return
    _attach(exchange, upstream, head)


def _attach(exchange: Exchange, upstream: UpstreamConnection, head: bytes) -> None:
    exchange.upstream = upstream
    exchange.attached = True
    exchange.give(exchange.gateway.settings.response_seconds)
    upstream.begin(exchange, head + exchange.up.drain())
    _go_on_reading(exchange)


def _go_on_reading(exchange: Exchange) -> None:
    if len(exchange.client.queue) == 1:
        exchange.client.resume("queue")

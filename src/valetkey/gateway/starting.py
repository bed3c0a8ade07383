"""The beginning of an exchange: who asks, whether that is let through, and what is done then."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from valetkey.gateway import access_endpoint, admission, answers, sending
from valetkey.gateway.answers import Answer
from valetkey.gateway.decide import Forward, Hold, Refuse
from valetkey.gateway.message import Problem, ReadHead, read_length, read_request
from valetkey.gateway.plan import disguises
from valetkey.gateway.repeat import Repeat

if TYPE_CHECKING:
    from valetkey.gateway.exchange import Exchange
    from valetkey.gateway.plan import Plan
    from valetkey.gateway.ring import LiveKey

__all__ = ["start", "start_again"]


def start(exchange: Exchange) -> None:
    """Decide on the request, and send it on or answer it."""
    exchange.begin()
    try:
        _start(exchange)
    except Exception as error:
        exchange.failed(error)


def start_again(exchange: Exchange, repeat: Repeat, length: int) -> None:
    """Do what was decided on the same head before."""
    exchange.begin()
    exchange.repeat, exchange.head, exchange.live, exchange.plan = repeat, repeat.head, repeat.live, repeat.plan
    exchange.token, exchange.length = repeat.token, length
    try:
        _admit(exchange, repeat.live, repeat.plan)
    except Exception as error:
        exchange.failed(error)


def _start(exchange: Exchange) -> None:
    if exchange.problem is not None:
        exchange.answer(exchange.problem, close=True)
        return
    gateway = exchange.gateway
    gateway.look()
    length = read_length(exchange.lengths)
    if isinstance(length, Problem):
        _malformed(exchange, length)
        return
    exchange.length = length
    head = read_request(exchange.method, exchange.version, exchange.headers, has_body=length > 0)
    if isinstance(head, Problem):
        _malformed(exchange, head)
        return
    if exchange.upgrading and not head.websocket and exchange.method != b"CONNECT":
        _malformed(exchange, Problem(status=400, reason="asks for an upgrade that the gateway does not see"))
        return
    exchange.head = head
    exchange.up.chunked = head.chunked
    live = _who(exchange, head)
    if live is None:
        return
    exchange.live = live
    if exchange.client.run is not None and exchange.client.tunnel is None and access_endpoint.is_for_us(exchange.url):
        _for_the_gateway(exchange)
        return
    if exchange.method == b"CONNECT" and (length or head.chunked or exchange.leftover):
        told = Problem(status=400, reason="sends something before its tunnel is open")
        _malformed(exchange, told)
        return
    exchange.plan = plan = _planned(exchange, head, live)
    if isinstance(plan.decision, Refuse):
        run = exchange.client.run
        ask = None if run is None else access_endpoint.way_to_ask(plan.decision)
        exchange.answer(answers.refused(plan.decision, run=run, ask=ask))
        return
    if exchange.foreign and plan.ref is not None and exchange.method != b"CONNECT":
        why = f"the request shows a credential of its own, and {plan.host} gets that of {plan.ref} alone"
        exchange.answer(answers.foreign_credential(live.key.id, why))
        return
    if plan.once:
        # Used before it goes out: whatever becomes of it, there is no second one. No `Repeat` of it is kept.
        exchange.gateway.access.use(live.key.id, plan.once)
        _admit(exchange, live, plan)
        return
    if exchange.raw_head and isinstance(plan.decision, Forward) and plan.ref is not None and not head.disguised:
        exchange.repeat = exchange.client.last = Repeat.of(exchange, head, live, plan)
    _admit(exchange, live, plan)


def _for_the_gateway(exchange: Exchange) -> None:
    work = functools.partial(exchange.spawn, access_endpoint.serve)
    limit = access_endpoint.MAX_BYTES
    if exchange.up.received > limit:
        told = answers.failed(413, "body_too_large", f"the body is longer than {limit} bytes", "send less")
        exchange.answer(told, close=True)
        return
    exchange.when_whole(work, most_bytes=limit)


def _malformed(exchange: Exchange, problem: Problem) -> None:
    told = answers.failed(problem.status, "malformed", f"the request {problem.reason}", "send plain HTTP/1.1")
    exchange.answer(told, close=True)


def _planned(exchange: Exchange, head: ReadHead, live: LiveKey) -> Plan:
    tunnel = exchange.client.tunnel
    names = frozenset[str]()
    if head.disguised:
        names = disguises(frozenset(name.decode("latin-1") for name, _ in head.lines))
    host = None if tunnel is None and exchange.url.startswith(b"/") else head.host
    return exchange.gateway.planner.plan(
        live, exchange.method, exchange.url, host=host, tunnel=tunnel, header_names=names, grant=exchange.chosen
    )


def _admit(exchange: Exchange, live: LiveKey, plan: Plan) -> None:
    """Count it against the key's limits, and go on."""
    if plan.counted:
        wait = live.meter.admit(exchange.begun)
        if wait is not None:
            exchange.answer(answers.too_many(wait, run=exchange.client.run))
            return
        exchange.admitted = True
    if isinstance(plan.decision, Hold):
        exchange.spawn(_held, plan.decision)
    else:
        sending.go(exchange)


def _who(exchange: Exchange, head: ReadHead) -> LiveKey | None:
    """Find the run of its socket, or the key that the client shows; answers where there is none that counts."""
    run, tunnel, ring = exchange.client.run, exchange.client.tunnel, exchange.gateway.ring
    if run is None:
        found = admission.identify(head, exchange.url, tunnel=tunnel, ring=ring)
    else:
        found = admission.identify_run(head, exchange.url, run=run, tunnel=tunnel, ring=ring)
    if isinstance(found, Answer):
        exchange.ended_client = found.client
        exchange.answer(found)
        return None
    exchange.token, exchange.url, exchange.chosen, exchange.foreign = found.token, found.url, found.grant, found.foreign
    exchange.client.known = True
    return found.live


async def _held(exchange: Exchange, hold: Hold) -> None:
    """Wait until a person has decided."""
    live = exchange.live
    if live is None:
        return
    approvals = exchange.gateway.approvals
    full = approvals.no_room(live.client)
    if full is not None:
        # Nobody has denied it, and it is no limit of the key: the client may come back.
        exchange.answer(answers.failed(429, "approvals_full", full, "decide on them first: `valetkey approvals list`"))
        return
    verdict = await approvals.wait(hold, client=live.client, name=live.key.name)
    if live.ended:
        exchange.answer(admission.ended(live), close=True)
    elif verdict == "approved":
        sending.go(exchange)
    else:
        how = "was denied by a person" if verdict == "denied" else "was decided on by nobody in time"
        told = answers.failed(
            403,
            f"approval_{verdict.replace('-', '_')}",
            f"the request {how}",
            "see `valetkey approvals list --settled`",
        )
        exchange.answer(told)

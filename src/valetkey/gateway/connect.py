"""Answers CONNECT: opens the tunnel, or takes TLS itself and looks at each request inside."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from valetkey.gateway import answers
from valetkey.gateway.body import Down
from valetkey.gateway.plan import Tunnel
from valetkey.gateway.relay import begin_relay

if TYPE_CHECKING:
    from valetkey.gateway.exchange import Exchange
    from valetkey.gateway.plan import Plan

__all__ = ["open_tunnel"]

_OPEN = b"HTTP/1.1 200 Connection Established\r\n\r\n"


async def open_tunnel(exchange: Exchange, plan: Plan) -> None:
    """Do what was decided on a CONNECT."""
    if plan.forward is not None and plan.forward.how == "intercept":
        await _intercept(exchange, plan)
    else:
        await _pass_through(exchange, plan)


async def _intercept(exchange: Exchange, plan: Plan) -> None:
    client, gateway, live = exchange.client, exchange.gateway, exchange.live
    authority = gateway.authority if live is None or live.authority is None else live.authority
    if authority is None or live is None:
        exchange.answer(
            answers.failed(503, "no_authority", "this gateway has no certificate authority", "use the base URL instead")
        )
        return
    context = await authority.context(plan.host_name)
    transport = client.transport
    if transport is None:
        return
    if exchange.leftover:
        # start_tls cannot be given what was read already.
        exchange.answer(
            answers.failed(400, "malformed", "the request sends something before its tunnel is open", "wait for it")
        )
        return
    inside = gateway.inside(
        Tunnel(host=plan.host_name, port=plan.port, live=live, token=exchange.token), run=client.run
    )
    # Nothing may be read as HTTP any more: the next bytes are the client's TLS.
    client.pause("tls")
    client.write(_OPEN)
    exchange.tunnel_opened()
    client.hand_over()
    try:
        wrapped = await gateway.loop.start_tls(
            transport, inside, context, server_side=True, ssl_handshake_timeout=gateway.settings.head_seconds
        )
    except (OSError, ssl.SSLError, EOFError):
        # A client that does not trust our certificate, or is gone.
        transport.abort()
        exchange.record("handshake_failed")
        return
    if wrapped is None:
        return
    inside.connection_made(wrapped)


async def _pass_through(exchange: Exchange, plan: Plan) -> None:
    upstream = await exchange.gateway.dial(plan, tunnel=True)
    upstream.relaying = True
    upstream.exchange = exchange
    exchange.upstream = upstream
    exchange.attached = True
    exchange.opened()
    exchange.down = Down(b"", chunked=False)
    exchange.client.write(_OPEN)
    begin_relay(exchange)

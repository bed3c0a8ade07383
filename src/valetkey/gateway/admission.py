"""Finds out who asks: the valet key that a request shows, in its own place or in that of its tunnel."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from valetkey.gateway import answers, presented
from valetkey.gateway.answers import Answer
from valetkey.gateway.message import ReadHead

if TYPE_CHECKING:
    from valetkey.gateway.plan import Tunnel
    from valetkey.gateway.ring import LiveKey, Ring

__all__ = ["ENDED", "Shown", "identify"]

ENDED = "the valet key has ended"


class Shown(NamedTuple):
    """A key that counts. `url` is the request's target without it, where it was a parameter of the query."""

    live: LiveKey
    token: bytes
    url: bytes


def identify(head: ReadHead, url: bytes, *, tunnel: Tunnel | None, ring: Ring) -> Shown | Answer:
    """Give the key that the request shows, or the answer where none counts."""
    if tunnel is not None:
        return _inside(head, url, tunnel)
    proxy = not url.startswith(b"/")
    if proxy:
        token = presented.from_proxy(head.proxy_authorization)
    else:
        token = presented.from_headers(head.credentials)
        if token is None and (token := presented.within(url)) is not None:
            url = presented.without(url, token)
    if ring.failed is not None:
        # Nobody can know which keys count: that is no fault of the client's.
        return answers.of_error(ring.failed)
    live = None if token is None else ring.resolve(token)
    if live is None or token is None:
        refusal = answers.no_key(proxy=proxy, why=None if token is None else ring.why(token))
        refusal.client = "" if token is None else ring.ended(token)
        return refusal
    return Shown(live, token, url)


def _inside(head: ReadHead, url: bytes, tunnel: Tunnel) -> Shown | Answer:
    if tunnel.live.ended:
        return answers.no_key(proxy=True, why=ENDED)
    for _, value in head.credentials:
        # A key of another account, which its holder took for this host's.
        if b"vk_" in value and tunnel.live.marker not in value:
            return answers.failed(
                403, "foreign_key", "the request shows another valet key than its tunnel", "use one of them"
            )
    return Shown(tunnel.live, tunnel.token, url)

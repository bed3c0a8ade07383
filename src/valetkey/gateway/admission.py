"""Finds out who asks: a run, by its socket; else the valet key that a request shows, or its tunnel did."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote_to_bytes

from valetkey.gateway import answers, presented
from valetkey.gateway.answers import Answer
from valetkey.gateway.message import ReadHead
from valetkey.gateway.placeholders import decoded, marks_in

if TYPE_CHECKING:
    from valetkey.credential import CredentialRef
    from valetkey.gateway.credentials import Placement
    from valetkey.gateway.plan import Tunnel
    from valetkey.gateway.ring import LiveKey, Ring

__all__ = ["Shown", "brings_its_own", "ended", "identify", "identify_run", "in_body"]

_ENDED = "the valet key has ended"
# Headers that are known to be credentials somewhere and go on where the declaration says nothing of them.
_OTHER_CREDENTIALS = frozenset(
    (
        b"private-token",
        b"job-token",
        b"x-auth-token",
        b"x-access-token",
        b"ocp-apim-subscription-key",
        b"x-amz-security-token",
    )
)
_PARAMETERS = frozenset((b"access_token", b"api_key", b"apikey", b"api-key", b"x-goog-api-key", b"oauth_token"))
# What a client writes that has no key to give.
_NOTHING = frozenset((b"", b"bearer", b"token", b"basic", b":"))


class Shown(NamedTuple):
    """A key that counts, or a run. `url` is the request's target without it, where it was a parameter of the query.

    Of a run, `token` is the placeholder (empty where it shows none) and `grant` the account that it is for; `foreign`
    says that it shows a credential which is not ours.
    """

    live: LiveKey
    token: bytes
    url: bytes
    grant: CredentialRef | None = None
    foreign: bool = False


def ended(live: LiveKey) -> Answer:
    """Give the answer where a key or a run has ended while its request waited."""
    if live.client.kind == "run":
        return answers.no_run(live.client.id, "it has ended")
    return answers.no_key(proxy=False, why=_ENDED)


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
        return answers.no_key(proxy=True, why=_ENDED)
    for _, value in head.credentials:
        # A key of another account, which its holder took for this host's.
        if b"vk_" in value and tunnel.live.marker not in value:
            return answers.failed(
                403, "foreign_key", "the request shows another valet key than its tunnel", "use one of them"
            )
    return Shown(tunnel.live, tunnel.token, url)


def identify_run(head: ReadHead, url: bytes, *, run: str, tunnel: Tunnel | None, ring: Ring) -> Shown | Answer:
    """Give the run by whose socket a request came, and the account that its placeholder names.

    What it shows makes it nobody else: a valet key, or another run's placeholder, is refused.
    """
    if ring.failed is not None:
        return answers.of_error(ring.failed)
    live = ring.run(run)
    if live is None or (tunnel is not None and tunnel.live is not live):
        return answers.no_run(run, ring.why_no_run(run))
    proofs = [decoded(header) for header in head.credentials]
    if head.proxy_authorization is not None:
        proofs.append(decoded((b"proxy-authorization", head.proxy_authorization)))
    if any(b"vk_" in proof for proof in proofs) or presented.within(url) is not None:
        return answers.foreign_key(run)
    named: dict[CredentialRef, bytes] = {}
    for text in (url, *proofs, *[value for _, value in head.lines]):
        for mark in marks_in(text):
            placeholder = live.placeholders.get(mark)
            if placeholder is None:
                return answers.foreign_credential(run, "the request shows a placeholder of another run")
            named.setdefault(placeholder.ref, placeholder.text)
            url = presented.without(url, placeholder.text)
    if len(named) > 1:
        return answers.foreign_credential(run, "the request shows the placeholders of two accounts")
    shown = [(name, decoded((name, value))) for name, value in head.credentials if name != b"cookie"]
    shown += [line for line in head.lines if line[0] in _OTHER_CREDENTIALS]
    foreign = any(not any(marks_in(proof)) and proof.strip().lower() not in _NOTHING for _, proof in shown)
    for ref, token in named.items():
        return Shown(live, token, url, ref, foreign)
    return Shown(live, b"", url, None, foreign)


def brings_its_own(url: bytes, placement: Placement, token: bytes) -> bool:
    """Say whether the address of a run's request holds a credential that is not the account's.

    Where the path is the place for it, a path without the placeholder is one. In the query, what is known to be one; a
    parameter that the declaration sets is replaced.
    """
    path, _, query = url.partition(b"?")
    if placement.in_path is not None and (not token or token not in path):
        return True
    names = {unquote_to_bytes(pair.partition(b"=")[0]).lower() for pair in query.split(b"&")}
    names -= {name.lower().encode() for name, _ in placement.query}
    # Google's APIs take either; elsewhere `key` is the name of anything.
    return bool(names & _PARAMETERS) or (b"key" in names and b"x-goog-api-key:" in placement.fixed)


def in_body(live: LiveKey, ref: CredentialRef, body: bytes) -> bytes:
    """Give this account's placeholder that a run wrote into a body; empty where there is none."""
    for mark in marks_in(body):
        placeholder = live.placeholders.get(mark)
        if placeholder is not None and placeholder.ref == ref:
            return placeholder.text
    return b""

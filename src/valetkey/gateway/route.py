"""The two ways in, a base URL and a forward proxy: reads what either gets into the request that `decide` sees."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from urllib.parse import urlsplit

from valetkey.gateway.decide import Client, Decision, Grant, Refuse, RequestHead, decide, malformed
from valetkey.gateway.normal import Malformed, normalise, split_authority
from valetkey.gateway.policy import Policy
from valetkey.inject import join
from valetkey.sandbox import PROXY_PORT

__all__ = ["INSIDE", "decided", "read_target", "route"]

# Where a run has its gateway.
INSIDE = f"http://127.0.0.1:{PROXY_PORT}"
_INSIDE = (INSIDE, f"http://localhost:{PROXY_PORT}")


def decided(method: str, url: str, client: Client, policy: Policy) -> Decision:
    """Decide on a request that is only spoken of: `https://host/path`, `/provider/path`, or `host:port` of CONNECT.

    A run may write its base URL whole.
    """
    for inside in _INSIDE if client.kind == "run" else ():
        if url.startswith(f"{inside}/"):
            url = url.removeprefix(inside)
    if method != "CONNECT" and url.startswith("/"):
        head = RequestHead(method=method, scheme="http", host="localhost", port=None, path=url)
        request = route(head, client)
    else:
        request = read_target(method, url)
    return request if isinstance(request, Refuse) else decide(request, client, policy)


def route(request: RequestHead, client: Client) -> RequestHead | Refuse:
    """Read the base-URL form `/<provider>[@account]/<path>` into the request that it stands for.

    The path is joined to the account's base URL as `inject.join` does. Without an account the one that a placeholder
    named (`request.grant`), else the first granted one of that provider is meant.
    """
    rest, mark, query = request.path.partition("?")
    first, _, path = rest.removeprefix("/").partition("/")
    provider, at, account = first.replace("%40", "@").partition("@")
    # Before it is joined: a dot segment must not climb above the base URL's path.
    clean = normalise(scheme="https", host="localhost", port=None, path=f"/{path}{mark}{query}")
    if isinstance(clean, Malformed):
        return malformed(clean)
    found = [grant for grant in client.grants if grant.ref.provider == provider]
    if at:
        found = [grant for grant in found if grant.ref.account == account]
    if not found:
        return Refuse(
            code="unknown_provider",
            status=404,
            reason=_unknown(first, client.grants),
            named=provider + at + account,
        )
    if request.grant is not None:
        found = [grant for grant in found if grant.ref == request.grant]
        if not found:
            return Refuse(code="not_granted", status=403, reason=f"{request.grant} is not what {first[:60]!r} names")
    base = urlsplit(found[0].base_url)
    joined = urlsplit(join(found[0].base_url, clean.path))
    authority = split_authority(base.netloc)
    if isinstance(authority, Malformed):
        return malformed(authority)
    return replace(
        request,
        scheme=base.scheme,
        host=authority[0],
        port=authority[1],
        path=(joined.path or "/") + mark + query,
        grant=found[0].ref,
    )


def _unknown(named: str, grants: Iterable[Grant]) -> str:
    known = ", ".join(dict.fromkeys(grant.ref.provider for grant in grants))
    shown = repr(named[:60])
    return f"the path begins with {shown}, which is no granted provider; granted here: {known or 'none'}"


def read_target(
    method: str, target: str, *, host: str | None = None, header_names: frozenset[str] = frozenset()
) -> RequestHead | Refuse:
    """Read what a forward proxy gets (RFC 9112 section 3.2): `http://host/path`, or `host:port` of CONNECT.

    `host` is the Host header, which has to say the same (section 3.2.2 would let it be ignored: two readers).
    """
    if method == "CONNECT":
        scheme, text, path = "https", target, "/"
    else:
        scheme, mark, rest = target.partition("://")
        scheme = scheme.lower()
        if not mark or scheme not in ("https", "http"):
            return malformed(Malformed(reason="has no http:// or https:// address"))
        cut = min(i for i in (rest.find("/"), rest.find("?"), rest.find("#"), len(rest)) if i >= 0)
        text, path = rest[:cut], rest[cut:]
        path = path if path.startswith("/") else "/" + path
    authority = split_authority(text)
    if isinstance(authority, Malformed):
        return malformed(authority)
    if method == "CONNECT" and authority[1] is None:
        return malformed(Malformed(reason="names no port to connect to"))
    if host is not None and not _same(scheme, authority, host):
        return malformed(Malformed(reason="has another host in its address than in its Host header"))
    return RequestHead(
        method=method, scheme=scheme, host=authority[0], port=authority[1], path=path, header_names=header_names
    )


def _same(scheme: str, authority: tuple[str, int | None], host: str) -> bool:
    other = split_authority(host)
    if isinstance(other, Malformed):
        return False
    mine, theirs = (normalise(scheme=scheme, host=name, port=port, path="/") for name, port in (authority, other))
    # Where neither is an address, it is the decision that says why.
    return mine == theirs

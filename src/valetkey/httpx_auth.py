"""The httpx2.Auth that `valetkey.auth()` gives: a fresh credential in each request, renewed once on a 401."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping
from typing import TYPE_CHECKING, Any

import httpx2

from valetkey.errors import CredentialError, HostsNotAccepted
from valetkey.waiting import wait_for

if TYPE_CHECKING:
    from valetkey.access import Access
    from valetkey.broker import Broker

__all__ = ["AccountAuth"]


class AccountAuth(httpx2.Auth):
    """Authenticates as `name` (`provider` or `provider@account`) with synchronous and asynchronous clients.

    A request to a host that is not the account's, or by plain http to one that is asked by https, raises
    HostsNotAccepted, and so does a redirect to one: neither is sent. After a 401 the credential is renewed and the
    request sent once more; where that does not help, or the body is a stream that cannot be sent twice, the 401 is
    passed on.
    """

    def __init__(self, name: str, *, broker: Broker) -> None:
        self._name = name
        self._broker = broker

    def __repr__(self) -> str:
        return f"AccountAuth({self._name!r})"

    def sync_auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        """Put the credential in; on a 401 get another one and, if there is one, send again."""
        original = dict(request.headers)
        access = wait_for(self._broker.access(self._name, use="auth"))
        _put_in(request, access, original)
        _stay_on_hosts(request, access, asynchronous=False)
        response = yield request
        if _can_send_again(request, response):
            try:
                newer = wait_for(self._broker.access(self._name, use="auth", rejected=access.credential))
            except CredentialError:
                return
            if _put_in(request, newer, original):
                yield request

    async def async_auth_flow(self, request: httpx2.Request) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        """Do the same in an event loop."""
        original = dict(request.headers)
        access = await self._broker.access(self._name, use="auth")
        _put_in(request, access, original)
        _stay_on_hosts(request, access, asynchronous=True)
        response = yield request
        if _can_send_again(request, response):
            try:
                newer = await self._broker.access(self._name, use="auth", rejected=access.credential)
            except CredentialError:
                return
            if _put_in(request, newer, original):
                yield request


def _put_in(request: httpx2.Request, access: Access, original: Mapping[str, str]) -> bool:
    """Replace the request's headers; say whether that changed them. Raises: HostsNotAccepted."""
    headers = httpx2.Headers(access.headers(str(request.url), original))
    url = httpx2.URL(access.placed(str(request.url)))
    changed = headers != request.headers or url != request.url
    request.headers, request.url = headers, url
    return changed


def _can_send_again(request: httpx2.Request, response: httpx2.Response) -> bool:
    # A redirect's 401 is another request's.
    return (
        response.status_code == 401
        and isinstance(request.stream, httpx2.ByteStream)
        and response.request.url == request.url
    )


def _stay_on_hosts(request: httpx2.Request, access: Access, *, asynchronous: bool) -> None:
    """Refuse to send the credential elsewhere when the client follows a redirect.

    On its way to another origin the client drops `Authorization` alone, not `x-api-key`; it carries the request's
    extensions along, and asks this one before it writes a head.
    """
    others = request.extensions.get("trace")

    def check(event: str, info: Mapping[str, Any]) -> None:
        if not event.endswith("send_request_headers.started"):
            return
        head = info["request"]
        if head.method == b"CONNECT":  # to a proxy; the credential is not in it
            return
        named = next((value for name, value in head.headers if name.lower() == b"host"), head.url.host)
        host = named.decode("ascii", "replace").lower()
        if access.credential is None:
            return
        # To a proxy that is to pass plain http on, the whole address is the target; https goes through a tunnel.
        if head.url.target.startswith(b"http:"):
            raise HostsNotAccepted(
                f"a proxy on the way to {host} would read the credential of {access.ref}",
                provider=access.ref.provider,
                hint=f"use https, or leave the proxy out: NO_PROXY={host.partition(':')[0]}",
            )
        try:
            access.check_place(f"{head.url.scheme.decode('ascii')}://{host}")
        except HostsNotAccepted as error:
            raise HostsNotAccepted(
                f"the server redirects to {host}, where {access.ref} may not be used: {error.message}",
                provider=access.ref.provider,
                hint="check the base URL that the client was given",
            ) from error

    def trace(event: str, info: Mapping[str, Any]) -> None:
        check(event, info)
        if others is not None:
            others(event, info)

    async def trace_asynchronously(event: str, info: Mapping[str, Any]) -> None:
        check(event, info)
        if others is not None:
            await others(event, info)

    request.extensions = {**request.extensions, "trace": trace_asynchronously if asynchronous else trace}

"""TLS handshakes without a network."""

from __future__ import annotations

import ssl

__all__ = ["handshake"]


def handshake(
    server: ssl.SSLContext,
    ca: bytes | str,
    host: str = "api.acme.test",
    *,
    sni: str | None = "",
    alpn: tuple[str, ...] = (),
) -> ssl.SSLObject:
    """Let a client that believes `ca` connect; give its side. `sni` is what it asks for, where that is not `host`."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(cadata=ca.decode() if isinstance(ca, bytes) else ca)
    if alpn:
        client.set_alpn_protocols(list(alpn))
    if sni != "":
        client.check_hostname = False
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server, server_hostname=host if sni == "" else sni)
    answering = server.wrap_bio(to_server, to_client, server_side=True)
    done: set[ssl.SSLObject] = set()
    while len(done) < 2:
        failure = None
        for side in (asking, answering):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError as error:
                # The client is told by an alert, which it has to read yet.
                failure = error
                if side is asking:
                    raise
        if failure is not None:
            asking.do_handshake()
    return asking

"""What real clients sent, taken from the wire on 2026-11-24; host, target and key are marks as in the probes."""

from __future__ import annotations

__all__ = ["CAPTURES"]

_OPENAI_BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
_ANTHROPIC_BODY = b'{"max_tokens":5,"messages":[{"role":"user","content":"hi"}],"model":"m"}'

CAPTURES: tuple[bytes, ...] = (
    # curl 7.88.1
    b"GET <T>/v1/models HTTP/1.1\r\nHost: <H>\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n<A>\r\n",
    b"POST <T>/v1/chat/completions HTTP/1.1\r\nHost: <H>\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n<A>"
    b'Content-Type: application/json\r\nContent-Length: 13\r\n\r\n{"model":"m"}',
    b"POST <T>/v1/chat HTTP/1.1\r\nHost: <H>\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n"
    b"Transfer-Encoding: chunked\r\n<A>Content-Type: application/x-www-form-urlencoded\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"PUT <T>/up HTTP/1.1\r\nHost: <H>\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n<A>"
    b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\nvm\n",
    # git 2.39.5
    b"GET <T>/a/b.git/info/refs?service=git-upload-pack HTTP/1.1\r\nHost: <H>\r\n<A>User-Agent: git/2.39.5\r\n"
    b"Accept: */*\r\nAccept-Encoding: deflate, gzip, br, zstd\r\nAccept-Language: C, *;q=0.9\r\nPragma: no-cache\r\n"
    b"Git-Protocol: version=2\r\n\r\n",
    # fetch of node
    b"POST <T>/v1/x HTTP/1.1\r\nhost: <H>\r\nconnection: keep-alive\r\n<A>content-type: application/json\r\n"
    b"accept: */*\r\naccept-language: *\r\nsec-fetch-mode: cors\r\nuser-agent: node\r\n"
    b"accept-encoding: gzip, deflate\r\ncontent-length: 2\r\n\r\n{}",
    # openai of Python
    b"POST <T>/v1/chat/completions HTTP/1.1\r\nHost: <H>\r\nAccept-Encoding: gzip, deflate\r\n"
    b"Connection: keep-alive\r\n<A>accept: application/json\r\ncontent-type: application/json\r\n"
    b"user-agent: OpenAI/Python 3.57.0\r\n"
    b"x-stainless-lang: python\r\nx-stainless-package-version: 3.57.0\r\nx-stainless-os: Linux\r\n"
    b"x-stainless-arch: x64\r\nx-stainless-runtime: CPython\r\nx-stainless-runtime-version: 3.11.7\r\n"
    b"x-stainless-async: false\r\nx-stainless-retry-count: 0\r\nx-stainless-read-timeout: 600\r\n"
    b"Content-Length: 57\r\n\r\n" + _OPENAI_BODY,
    # anthropic of Python
    b"POST <T>/v1/messages HTTP/1.1\r\nHost: <H>\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n"
    b"x-stainless-timeout: 600\r\nx-stainless-retry-count: 0\r\nx-stainless-read-timeout: 600\r\n"
    b"Accept: application/json\r\nContent-Type: application/json\r\nUser-Agent: Anthropic/Python 2.13.0\r\n"
    b"X-Stainless-Lang: python\r\nX-Stainless-Package-Version: 2.13.0\r\nX-Stainless-OS: Linux\r\n"
    b"X-Stainless-Arch: x64\r\nX-Stainless-Runtime: CPython\r\nX-Stainless-Runtime-Version: 3.11.7\r\n<A>"
    b"X-Stainless-Async: false\r\nanthropic-version: 2026-10-21\r\nContent-Length: 72\r\n\r\n" + _ANTHROPIC_BODY,
    # A browser's WebSocket, and a proxy's client.
    b"GET <T>/v1/realtime HTTP/1.1\r\nHost: <H>\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n<A>"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    b"CONNECT <H> HTTP/1.1\r\nHost: <H>\r\nUser-Agent: curl/7.88.1\r\nProxy-Connection: Keep-Alive\r\n<A>\r\n",
)

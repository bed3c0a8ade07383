"""An STS that says what a test wants, its clock the test's: what no real one can be made to answer."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from datetime import timedelta

from valetkey.clock import Clock
from valetkey.testing.local_server import Answer, Drop, LocalServer, Received, Reply

__all__ = ["Sts"]

_ASSUMED = """<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>
<AccessKeyId>{id}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey><SessionToken>{token}</SessionToken>
<Expiration>{ends}</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"""
_REFUSED = """<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>
<Code>{code}</Code><Message>words of the provider</Message></Error><RequestId>1</RequestId></ErrorResponse>"""


class Sts:
    """Use it with `with`. `refusal` is a code and a status, `drops` cuts each connection, `open` lets answers out."""

    def __init__(self, clock: Clock) -> None:
        self.refusal: tuple[str, int] | None = None
        self.drops = False
        self.open = threading.Event()
        self.open.set()
        self.issued: list[str] = []
        self._clock = clock
        self._server = LocalServer(self._respond)
        self.url = self._server.url

    def __enter__(self) -> Sts:
        self._server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.open.set()
        self._server.stop()

    @property
    def asked(self) -> list[Mapping[str, str]]:
        """What each call of it had in its form."""
        return [request.form for request in self._server.requests]

    @property
    def signed(self) -> list[str]:
        """Authorization of each call."""
        return [request.headers["authorization"] for request in self._server.requests]

    def _respond(self, request: Received) -> Reply:
        self.open.wait(60)
        if self.drops:
            return Drop()
        xml = {"content-type": "text/xml"}
        if self.refusal is not None:
            code, status = self.refusal
            return Answer(status=status, headers=xml, body=_REFUSED.format(code=code).encode())
        ends = self._clock.now() + timedelta(seconds=int(request.form["DurationSeconds"]))
        secret, token = "issued" + os.urandom(17).hex(), "token" + os.urandom(40).hex()
        self.issued += [secret, token]
        key_id = "ASIA" + os.urandom(8).hex().upper()
        body = _ASSUMED.format(id=key_id, secret=secret, token=token, ends=ends.strftime("%Y-%m-%dT%H:%M:%SZ"))
        return Answer(headers=xml, body=body.encode())

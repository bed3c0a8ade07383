"""moto's server in a process of its own, over TLS: AWS as far as the tests need it, and what it was asked."""

from __future__ import annotations

import contextlib
import json
import ssl
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.server_process import running
from tests.support.tls import CertificateAuthority

__all__ = ["Moto", "moto"]

_PROGRAM = Path(__file__).parent / "programs" / "moto_tls.py"


@dataclass(frozen=True, kw_only=True)
class Moto:
    """One that runs. `port` is on loopback; its certificate is for the hosts that it was asked for."""

    port: int
    ca_file: Path

    def asked(self, action: str) -> list[dict[str, str]]:
        """Give the calls of this name so far: `action`, `key_id` that it was signed with, `session` that it names."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        with urllib.request.urlopen(f"https://localhost:{self.port}/asked", context=context, timeout=60) as answer:
            return [call for call in json.load(answer) if call["action"] == action]


@contextlib.contextmanager
def moto(authority: CertificateAuthority, *hosts: str) -> Iterator[Moto]:
    """Run it for these hosts and for localhost."""
    pair = authority.pair("localhost", *hosts)
    with running([sys.executable, "-P", str(_PROGRAM)], {"pair": str(pair)}) as said:
        yield Moto(port=int(said["port"]), ca_file=authority.ca_file)

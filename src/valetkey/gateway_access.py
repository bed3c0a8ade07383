"""What a program needs to use an account through the gateway: an address and a valet key that lives as long as it."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Self

from valetkey import serving
from valetkey.broker import Broker
from valetkey.config import Paths
from valetkey.credential import CredentialRef, Secret
from valetkey.errors import ValetkeyError
from valetkey.gateway.authority import Authority
from valetkey.gateway.background import up
from valetkey.gateway.keys import Keys, base_urls, proxy_url

__all__ = ["GatewayAccess", "open_access"]

# A program that is killed leaves its key behind: it ends by itself.
_LIFE = timedelta(hours=24)

_guard = threading.Lock()
_kept: dict[tuple[str, CredentialRef, int], GatewayAccess] = {}


@dataclass(frozen=True, kw_only=True)
class GatewayAccess:
    """An account behind the gateway: `base_url` is what the provider's own SDK takes, `key` what it takes as API key.

    `proxy_url` is for HTTPS_PROXY; what goes through it has to trust the certificates in `ca_file`. The key ends with
    the program, at `revoke`, with a `with` block, or after a day.
    """

    base_url: str
    proxy_url: str = field(repr=False)
    ca_file: str
    id: str
    _key: Secret
    _keys: Keys = field(repr=False)
    _home: str

    @property
    def key(self) -> str:
        """The valet key. It opens this account, through this gateway, and nothing else."""
        return self._key.reveal()

    def revoke(self) -> None:
        """End the key now, and what goes on with it. Raises: StoreError."""
        self._keys.revoke(self.id)
        serving.poke(self._home)
        with _guard:
            for place, access in list(_kept.items()):
                if access is self:
                    del _kept[place]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.revoke()


def open_access(broker: Broker, name: str, *, paths: Paths, environ: Mapping[str, str], version: str) -> GatewayAccess:
    """Give the access to `name`, the same for this process until it is revoked; starts the gateway where none runs.

    Raises: UnknownProvider, NotLoggedIn, NotForThisUse, GatewayFailed, StoreError.
    """
    ref = broker.resolve(name)
    home = os.path.abspath(paths.home)
    with _guard:
        running = up(paths, environ=environ, version=version)
        place = (home, ref, os.getpid())
        kept = _kept.get(place)
        if kept is not None and kept.base_url.startswith(str(running.about["url"])):
            return kept
        keys = Keys(broker.store, broker.clock, broker.audit)
        made, token = keys.issue(
            grants=[ref],
            catalogue=broker.catalogue,
            environ=environ,
            name=f"{_program()} {os.getpid()} {ref}",
            expires_at=broker.clock.now() + _LIFE,
        )
        serving.poke(home)
        url = str(running.about["url"])
        authority = Authority(paths, broker.clock)
        authority.open()  # there may be none yet, and `ca_file` is read now
        access = GatewayAccess(
            base_url=base_urls(url, [ref])[ref],
            proxy_url=proxy_url(url, token.reveal()),
            ca_file=str(authority.path),
            id=made.id,
            _key=token,
            _keys=keys,
            _home=home,
        )
        _kept[place] = access
        if len(_kept) == 1:
            atexit.register(_end_all, os.getpid())
        return access


def _program() -> str:
    name = os.path.basename(sys.argv[0] if sys.argv else "")[:60]
    return name if name.isprintable() and name not in ("", "-", "-c", "-m") else "python"


def _end_all(pid: int) -> None:
    """Revoke what this process made; a forked child's parent goes on."""
    if pid == os.getpid():
        for access in list(_kept.values()):
            with suppress(ValetkeyError):
                access.revoke()

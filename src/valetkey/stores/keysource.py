"""Key sources: where the key lies that opens the store, and how it is had.

A source seals ("wraps") data keys. What it hands back names its own parameters, so that it opens after an update too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol, get_args

from valetkey.config import Paths
from valetkey.credential import Secret
from valetkey.errors import ConfigError, StoreLocked
from valetkey.stores.command import Command
from valetkey.stores.keychain import Keychain, keychain_problem
from valetkey.stores.keyfile import KeyFile
from valetkey.stores.passphrase import Passphrase, from_environment

__all__ = ["KeySource", "Kind", "sources"]

Kind = Literal["keychain", "passphrase", "key-file", "command"]


class KeySource(Protocol):
    """Wraps and unwraps data keys under a key that lies outside the database.

    Every call may raise StoreLocked (the key is not to be had now), WrongKey, WrongMode or StoreUnwritable.
    """

    @property
    def kind(self) -> Kind:
        """Name it, as it stands beside each wrapped key."""
        ...

    def notice(self) -> str:
        """Say what the user should know about it; nothing where all is well."""
        ...

    def wrap(self, data_key: bytes, key_id: str) -> bytes:
        """Seal a data key; makes the source's own key where there is none yet."""
        ...

    def unwrap(self, wrapped: bytes, key_id: str) -> bytes:
        """Open one. Never makes a key."""
        ...

    def renew(self) -> None:
        """Make a new key of its own for what is wrapped from now on; the old one still opens."""
        ...

    def retire(self) -> None:
        """Forget all keys of its own but the newest."""
        ...

    def discard(self) -> None:
        """Forget all of them: another source has taken over."""
        ...


def sources(
    paths: Paths,
    *,
    given: KeySource | None = None,
    kind: str = "auto",
    command: Sequence[str] = (),
    ask_passphrase: Callable[[], Secret] | None = None,
    environ: Mapping[str, str],
) -> Callable[[str | None, str], KeySource]:
    """Give what makes the key source of a kind for a store's id; of kind None, the one that a new store shall have."""
    if kind not in ("auto", *get_args(Kind)):
        raise ConfigError(f"{kind!r} is not a key source", hint=f"use one of: auto, {', '.join(get_args(Kind))}")

    def make(wanted: str | None, store_id: str) -> KeySource:
        if given is not None:
            return given
        match wanted or kind:
            case "keychain":
                return Keychain(store_id)
            case "passphrase":
                return Passphrase(ask_passphrase or from_environment(environ))
            case "key-file":
                return KeyFile(str(paths.key_file))
            case "command":
                return Command(command)
            case "auto":
                return KeyFile(str(paths.key_file)) if keychain_problem() else Keychain(store_id)
            case other:
                raise StoreLocked(
                    f"the store's key comes from {other}, which this version does not know", hint="update Valetkey"
                )

    return make

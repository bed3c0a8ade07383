"""The operating system's keychain as key source; only backends that encrypt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from valetkey.errors import StoreLocked, ValetkeyError, WrongKey
from valetkey.stores.keyfile import MAX_KEYS, as_text, from_text, unwrap_with
from valetkey.stores.seal import new_key, wrap

if TYPE_CHECKING:
    from keyring.backend import KeyringBackend

__all__ = ["Keychain", "keychain_problem"]

# The backends that keep what they are given behind the user's login. All others (keyrings.alt, null, fail, a plug-in
# nobody looked at) may write plain text.
_REAL = frozenset(
    {
        "keyring.backends.SecretService",
        "keyring.backends.libsecret",
        "keyring.backends.kwallet",
        "keyring.backends.macOS",
        "keyring.backends.Windows",
    }
)
_CHAINER = "keyring.backends.chainer"
_SERVICE = "valetkey"


class Keychain:
    """A KeySource: one entry of service `valetkey`, named by the store's id, readable while the user is logged in."""

    kind: Literal["keychain"] = "keychain"

    def __init__(self, store_id: str, *, backend: KeyringBackend | None = None) -> None:
        self._name = store_id
        self._given = backend

    def notice(self) -> str:
        """Say nothing: this is the best there is."""
        return ""

    def wrap(self, data_key: bytes, key_id: str) -> bytes:
        """Seal a data key under the newest key; makes the entry where it is missing."""
        if (keys := self._read()) is None:
            keys = self._write([new_key()])
        return wrap(keys[0], data_key, key_id)

    def unwrap(self, wrapped: bytes, key_id: str) -> bytes:
        """Open one."""
        return unwrap_with(self._there(), wrapped, key_id)

    def renew(self) -> None:
        """Put a new key before the old one."""
        self._write([new_key(), *self._there()][:MAX_KEYS])

    def retire(self) -> None:
        """Keep the newest only."""
        self._write(self._there()[:1])

    def discard(self) -> None:
        """Remove the entry."""
        if self._read() is not None:
            with _in_our_words():
                self._backend().delete_password(_SERVICE, self._name)

    def _there(self) -> list[bytes]:
        keys = self._read()
        if keys is None:
            raise StoreLocked(
                f"the keychain has no entry {_SERVICE!r} / {self._name!r}",
                hint="log in as the user who made the store, or run `valetkey store restore --force` with a backup",
            )
        return keys

    def _read(self) -> list[bytes] | None:
        with _in_our_words():
            text = self._backend().get_password(_SERVICE, self._name)
            return None if text is None else from_text(text)

    def _write(self, keys: list[bytes]) -> list[bytes]:
        with _in_our_words():
            self._backend().set_password(_SERVICE, self._name, as_text(keys))
        # Read back: a backend that drops what it is given would lose every login.
        if self._read() != keys:
            raise StoreLocked("the keychain did not keep the store's key", hint="run `valetkey store source key-file`")
        return keys

    def _backend(self) -> KeyringBackend:
        backend, problem = _real_backend(self._given)
        if backend is None:
            raise StoreLocked(f"there is no keychain that may hold the store's key: {problem}", hint=_HINT)
        return backend


_HINT = (
    "start and unlock the keychain (Secret Service, KWallet, macOS Keychain, Windows Credential Locker),"
    " or choose `valetkey store source key-file`"
)


@contextmanager
def _in_our_words() -> Iterator[None]:
    """Put whatever a backend raises (D-Bus, Objective-C, ours) into one error that says so."""
    try:
        yield
    except ValetkeyError:
        raise
    except ValueError:
        # Without its cause: it may quote the entry.
        raise WrongKey(
            "the keychain's entry is not a Valetkey key", hint="put a backup back with `valetkey store restore --force`"
        ) from None
    except Exception as error:
        raise StoreLocked(f"the keychain does not answer ({type(error).__name__})", hint=_HINT) from error


def keychain_problem(backend: KeyringBackend | None = None) -> str:
    """Say why the keychain cannot hold a key now; nothing where it can. `backend` is keyring's choice if not given."""
    return _real_backend(backend)[1]


def _real_backend(given: KeyringBackend | None) -> tuple[KeyringBackend | None, str]:
    """Give the backend that would be used, or why none may be."""
    import keyring  # only here: it takes 50 ms and looks around the whole system

    try:
        backend = given or keyring.get_keyring()
    except Exception as error:  # whatever a plug-in of keyring's raises
        return None, f"keyring fails to start ({type(error).__name__})"
    if type(backend).__module__ == _CHAINER:
        return _first_of_chain(list(getattr(backend, "backends", [])))
    return _judged(backend)


def _first_of_chain(backends: list[KeyringBackend]) -> tuple[KeyringBackend | None, str]:
    """Take the real one out of a chain, so that nothing falls through to a plain one behind it."""
    for backend in backends:
        if _judged(backend)[0] is not None:
            return backend, ""
    names = ", ".join(type(backend).__module__ for backend in backends)
    return None, f"keyring offers only {names or 'nothing'}"


def _judged(backend: KeyringBackend) -> tuple[KeyringBackend | None, str]:
    module = type(backend).__module__
    if module in _REAL:
        return backend, ""
    if module == "keyring.backends.fail":
        return None, "none is running"
    return None, f"{module} is not known to encrypt"

"""Key sources: what each makes, keeps, refuses and forgets."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from binascii import b2a_base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from keyring.backends import SecretService, chainer, fail, null

from tests.support.keychain import gnome_keyring
from valetkey.config import Paths
from valetkey.credential import Secret
from valetkey.errors import ConfigError, StoreLocked, WrongKey, WrongMode
from valetkey.stores.command import Command
from valetkey.stores.keychain import Keychain, keychain_problem
from valetkey.stores.keyfile import KeyFile, read_keys
from valetkey.stores.keysource import sources
from valetkey.stores.passphrase import Passphrase, from_environment
from valetkey.stores.seal import new_key, wrap

DATA_KEY = new_key()


@pytest.fixture(scope="module")
def keychain_bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with gnome_keyring(tmp_path_factory.mktemp("keyring")) as address:
        yield address


class Plaintext:
    """What keyrings.alt has: a backend that works and encrypts nothing. A subclass would be offered to others."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.kept[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.kept[service, username]


# --- the key file ------------------------------------------------------------------------------


def test_a_key_file_is_made_at_the_first_wrapping_and_read_by_others(tmp_path: Path) -> None:
    path = tmp_path / "store.key"
    wrapped = KeyFile(str(path)).wrap(DATA_KEY, "k")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert KeyFile(str(path)).unwrap(wrapped, "k") == DATA_KEY
    assert str(path) in KeyFile(str(path)).notice()


def test_opening_never_makes_a_key_file(tmp_path: Path) -> None:
    path = tmp_path / "store.key"
    with pytest.raises(StoreLocked, match="missing"):
        KeyFile(str(path)).unwrap(wrap(new_key(), DATA_KEY, "k"), "k")
    assert not path.exists()


def test_a_renewed_key_file_opens_old_and_new_until_it_retires(tmp_path: Path) -> None:
    source = KeyFile(str(tmp_path / "store.key"))
    old = source.wrap(DATA_KEY, "k")
    source.renew()
    new = source.wrap(DATA_KEY, "k")
    assert source.unwrap(old, "k") == source.unwrap(new, "k") == DATA_KEY
    source.retire()
    assert source.unwrap(new, "k") == DATA_KEY
    with pytest.raises(WrongKey):
        source.unwrap(old, "k")
    source.discard()
    source.discard()
    assert list(tmp_path.glob("store.key*")) == []


def test_a_key_file_left_half_made_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "store.key.new").write_text("half")
    source = KeyFile(str(tmp_path / "store.key"))
    assert source.unwrap(source.wrap(DATA_KEY, "k"), "k") == DATA_KEY
    assert not (tmp_path / "store.key.new").exists()


@pytest.mark.parametrize(
    "content", [b"", b"# only a comment\n", b"not base64\n", b"QUJD\n", b"\xff\xfe", b2a_base64(bytes(31))]
)
def test_a_damaged_key_file_is_refused_and_not_quoted(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "store.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(WrongKey) as caught:
        read_keys(str(path))
    assert "QUJD" not in caught.value.message
    with pytest.raises(WrongKey):
        KeyFile(str(path)).wrap(DATA_KEY, "k")
    assert path.read_bytes() == content


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "store.key"
    source = KeyFile(str(path))
    wrapped = source.wrap(DATA_KEY, "k")
    path.chmod(mode)
    with pytest.raises(WrongMode) as caught:
        source.unwrap(wrapped, "k")
    assert caught.value.hint == f"run `chmod 600 {path}`"


# --- the passphrase ----------------------------------------------------------------------------


def test_a_passphrase_is_asked_for_once_and_a_wrong_one_again() -> None:
    wrapped = Passphrase(lambda: Secret("right"), log_n=4).wrap(DATA_KEY, "k")
    answers = ["wrong", "", "right", "never asked"]
    source = Passphrase(lambda: Secret(answers.pop(0)), log_n=9)
    with pytest.raises(WrongKey):
        source.unwrap(wrapped, "k")
    with pytest.raises(StoreLocked, match="empty"):
        source.unwrap(wrapped, "k")
    assert source.unwrap(wrapped, "k") == DATA_KEY
    assert source.unwrap(wrapped, "k") == DATA_KEY
    assert answers == ["never asked"]


def test_the_same_passphrase_gives_another_key_each_time() -> None:
    source = Passphrase(lambda: Secret("right"), log_n=4)
    assert source.wrap(DATA_KEY, "k")[1:17] != source.wrap(DATA_KEY, "k")[1:17]


def test_the_published_cost_is_what_is_used_by_default() -> None:
    source = Passphrase(lambda: Secret("right"))
    wrapped = source.wrap(DATA_KEY, "k")
    assert wrapped[0] == 17
    assert source.unwrap(wrapped, "k") == DATA_KEY


@pytest.mark.parametrize("cost", [0, 21, 255])
def test_a_forged_cost_is_refused_before_it_is_paid(cost: int) -> None:
    wrapped = Passphrase(lambda: Secret("right"), log_n=4).wrap(DATA_KEY, "k")
    with pytest.raises(WrongKey):
        Passphrase(lambda: Secret("right")).unwrap(bytes([cost]) + wrapped[1:], "k")


@pytest.mark.parametrize("wrapped", [b"", b"\x04", b"\x04" + bytes(16), bytes(100)])
def test_a_cut_wrapping_is_a_wrong_key(wrapped: bytes) -> None:
    with pytest.raises(WrongKey):
        Passphrase(lambda: Secret("right"), log_n=4).unwrap(wrapped, "k")


def test_the_passphrase_is_read_from_the_file_that_the_environment_names(tmp_path: Path) -> None:
    path = tmp_path / "passphrase"
    path.write_text("correct horse\nsecond line\n")
    path.chmod(0o600)
    assert from_environment({"VALETKEY_PASSPHRASE_FILE": str(path)})() == Secret("correct horse")
    path.chmod(0o644)
    with pytest.raises(WrongMode):
        from_environment({"VALETKEY_PASSPHRASE_FILE": str(path)})()
    path.write_text("")
    path.chmod(0o600)
    with pytest.raises(StoreLocked, match="no passphrase"):
        from_environment({"VALETKEY_PASSPHRASE_FILE": str(path)})()
    with pytest.raises(StoreLocked, match="missing"):
        from_environment({"VALETKEY_PASSPHRASE_FILE": str(tmp_path / "nowhere")})()
    with pytest.raises(StoreLocked, match="locked by a passphrase"):
        from_environment({})()


# --- the command -------------------------------------------------------------------------------


def _printing(text: str) -> Command:
    return Command([sys.executable, "-c", f"import sys; sys.stdout.write({text!r})"])


def test_a_command_prints_a_key_or_any_text() -> None:
    key = new_key()
    wrapped = wrap(key, DATA_KEY, "k")
    assert _printing(b2a_base64(key).decode()).unwrap(wrapped, "k") == DATA_KEY
    source = _printing("any text")
    assert _printing("  any text\n").unwrap(source.wrap(DATA_KEY, "k"), "k") == DATA_KEY
    with pytest.raises(WrongKey):
        _printing("another text").unwrap(wrapped, "k")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Command([]), "none is set"),
        (Command(["/nowhere/at/all"]), "cannot be started"),
        (Command(["nul\x00"]), "cannot be started"),
        (Command([sys.executable, "-c", "raise SystemExit(3)"]), "ended with status 3"),
        (_printing(" \n"), "printed nothing"),
    ],
)
def test_a_command_that_gives_no_key_leaves_the_store_locked(source: Command, message: str) -> None:
    with pytest.raises(StoreLocked, match=message) as caught:
        source.wrap(DATA_KEY, "k")
    assert caught.value.hint


def test_what_a_failing_command_printed_is_nowhere_in_the_error() -> None:
    source = Command([sys.executable, "-c", "print('canary'); raise SystemExit(1)"])
    with pytest.raises(StoreLocked) as caught:
        source.wrap(DATA_KEY, "k")
    assert "canary" not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"


# --- the keychain ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Plaintext, null.Keyring, fail.Keyring])
def test_a_backend_that_does_not_encrypt_is_refused_and_gets_nothing(kind: Any) -> None:
    backend = kind()
    with pytest.raises(StoreLocked, match="no keychain that may hold") as caught:
        Keychain("id", backend=backend).wrap(DATA_KEY, "k")
    assert "store source key-file" in caught.value.hint
    assert keychain_problem(backend)
    assert getattr(backend, "kept", {}) == {}


def test_a_chain_of_plain_backends_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Plaintext()
    monkeypatch.setattr(chainer.ChainerBackend, "backends", [plain])
    chain = chainer.ChainerBackend()  # type: ignore[no-untyped-call]
    assert "Plaintext" not in keychain_problem(chain)
    assert "offers only" in keychain_problem(chain)
    with pytest.raises(StoreLocked):
        Keychain("id", backend=chain).wrap(DATA_KEY, "k")
    assert plain.kept == {}


_LOGIN = """
import sys
from pathlib import Path
from valetkey.clock import SystemClock
from valetkey.config import Paths
from valetkey.credential import ApiKey, CredentialRef, Secret
from valetkey.store import Record
from valetkey.stores import open_store

store = open_store(Paths(home=Path(sys.argv[1])), clock=SystemClock(), key_source_kind=sys.argv[2])
key = ApiKey(method="api-key", key=Secret("k" * 20))
store.save(Record(ref=CredentialRef(provider="acme", account=sys.argv[2]), credential=key))
print(store.source_kind(), "|", store.notice())
store.close()
"""


def _login(home: Path, kind: str, **environ: str) -> str:
    """Save a record in a process of its own: keyring decides once in a process what there is."""
    done = subprocess.run(
        [sys.executable, "-c", _LOGIN, str(home), kind],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def test_a_machine_without_a_keychain_gets_a_key_file_and_is_told_so(home: Path) -> None:
    said = _login(home, "auto")
    assert said.startswith("key-file | the store's key lies in the file")
    assert (home / "store.key").exists()


def test_a_keychain_that_was_asked_for_and_is_not_there_is_an_error(home: Path) -> None:
    said = _login(home, "keychain", PYTHON_KEYRING_BACKEND="keyring.backends.null.Keyring")
    assert "there is no keychain that may hold the store's key: keyring.backends.null is not known to encrypt" in said
    assert not (home / "store.key").exists()


def test_a_machine_with_a_keychain_gets_its_key_there(home: Path, keychain_bus: str) -> None:
    assert _login(home, "auto", DBUS_SESSION_BUS_ADDRESS=keychain_bus) == "keychain |"
    assert _login(home, "key-file", DBUS_SESSION_BUS_ADDRESS=keychain_bus) == "keychain |"
    assert not (home / "store.key").exists()
    assert "there is no keychain" in _login(home, "auto")


def test_the_real_keychain_keeps_renews_retires_and_forgets(keychain_bus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", keychain_bus)
    backend: Any = SecretService.Keyring  # it has no types
    real = backend()
    assert keychain_problem(real) == ""
    source, other = Keychain("one store", backend=real), Keychain("another store", backend=real)
    old = source.wrap(DATA_KEY, "k")
    with pytest.raises(StoreLocked, match="no entry"):
        other.unwrap(old, "k")
    other.wrap(DATA_KEY, "k")
    source.renew()
    new = source.wrap(DATA_KEY, "k")
    assert source.unwrap(old, "k") == source.unwrap(new, "k") == DATA_KEY
    source.retire()
    assert Keychain("one store", backend=real).unwrap(new, "k") == DATA_KEY
    with pytest.raises(WrongKey):
        source.unwrap(old, "k")
    source.discard()
    source.discard()
    assert real.get_password("valetkey", "one store") is None
    real.set_password("valetkey", "another store", "rubbish")
    with pytest.raises(WrongKey, match="not a Valetkey key"):
        other.unwrap(old, "k")


def test_an_unknown_kind_of_source_is_named(home: Path) -> None:
    with pytest.raises(ConfigError, match="'pocket'"):
        sources(Paths(home=home), kind="pocket", environ={})
    with pytest.raises(StoreLocked, match="pocket"):
        sources(Paths(home=home), environ={})("pocket", "id")

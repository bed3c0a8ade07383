"""What a running gateway knows of itself: whether it is used, what it is granted, whether it is locked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from valetkey.config import load
from valetkey.credential import ApiKey, CredentialRef, Health, Secret
from valetkey.errors import NotForThisUse, NotLoggedIn, StoreLocked, UnknownApproval
from valetkey.gateway.keys import Keys
from valetkey.gateway.operating import Operating, Parts
from valetkey.gateway.process import assembled
from valetkey.store import Record
from valetkey.testing.clock import FakeClock

pytestmark = pytest.mark.anyio

REF = CredentialRef(provider="acme")
DECLARED = """
id = "acme"
name = "Acme"
[api]
base_url = "https://api.acme.example/v1"
hosts = ["api.acme.example"]
[[auth]]
id = "api-key"
kind = "api-key"
environment = ["ACME_API_KEY"]
inject = [{ set = { authorization = "Bearer {key}" } }]
"""


@dataclass(kw_only=True)
class Scene:
    home: Path
    clock: FakeClock
    parts: Parts
    told: list[Mapping[str, object]] = field(default_factory=list)
    stopped: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.operating = Operating(
            self.parts,
            about={"pid": 1, "locked": False},
            changed=lambda about: self.told.append(dict(about)),
            stop=self.stopped.append,
        )
        self.keys = Keys(self.parts.store, self.clock)

    def log_in(self, ref: CredentialRef = REF, *, restricted: bool = False) -> None:
        self.parts.store.save(
            Record(
                ref=ref,
                credential=ApiKey(method="api-key", key=Secret("the-key")),
                hosts=("api.acme.example",),
                base_url="https://api.acme.example/v1",
                restricted=restricted,
            )
        )

    def make_key(self, *refs: CredentialRef) -> str:
        made, _ = self.keys.issue(grants=refs or (REF,), catalogue=self.parts.broker.catalogue, environ={})
        return made.id


@pytest.fixture
async def scene(home: Path, clock: FakeClock) -> AsyncIterator[Scene]:
    (home / "providers").mkdir(mode=0o700)
    (home / "providers" / "acme.toml").write_text(DECLARED)
    environ = {
        "VALETKEY_HOME": str(home),
        "VALETKEY_STORE_KEY_SOURCE": "key-file",
        "ACME_API_KEY": "of-the-environment",
    }
    parts = assembled(load(environ), environ=environ, clock=clock)
    yield Scene(home=home, clock=clock, parts=parts)
    parts.broker.close()


async def test_it_is_idle_from_the_last_call_on_and_never_while_a_valet_key_counts(scene: Scene) -> None:
    operating = scene.operating
    scene.clock.advance(5000)
    assert operating.idle_seconds() == 5000
    operating.heard()
    assert operating.idle_seconds() == 0
    scene.log_in()
    key = scene.make_key()
    operating.look()
    scene.clock.advance(5000)
    assert operating.idle_seconds() == 0
    scene.keys.revoke(key)
    operating.look()
    scene.clock.advance(10)
    assert operating.idle_seconds() == 10


async def test_what_counts_now_is_what_is_granted(scene: Scene) -> None:
    other = CredentialRef(provider="acme", account="other")
    scene.log_in()
    scene.log_in(other)
    one, _ = scene.make_key(REF), scene.make_key(REF, other)
    scene.operating.look()
    assert scene.operating.granted() == {REF, other}
    scene.keys.revoke(one)
    scene.operating.look()
    assert scene.operating.granted() == {REF, other}
    scene.clock.advance(0)
    for key in scene.keys.all():
        scene.keys.revoke(key.id)
    scene.operating.look()
    assert scene.operating.granted() == set()


async def test_a_declaration_that_is_written_or_changed_counts_without_a_restart(scene: Scene) -> None:
    catalogue = scene.parts.broker.catalogue
    assert catalogue.get("acme").name == "Acme"
    file = scene.home / "providers" / "acme.toml"
    replaced = file.with_suffix(".new")
    replaced.write_text(DECLARED.replace('"Acme"', '"Another"'))
    replaced.rename(file)
    scene.operating.look_at_declarations()
    assert catalogue.get("acme").name == "Another"


async def test_a_token_is_a_stored_one_and_never_the_environments(scene: Scene) -> None:
    with pytest.raises(NotLoggedIn):
        await scene.operating.token("acme")
    scene.log_in()
    told = await scene.operating.token("acme")
    assert told == {
        "provider": "acme",
        "account": "default",
        "source": "stored",
        "token": "the-key",
        "expires_at": None,
    }
    scene.log_in(CredentialRef(provider="acme", account="restricted"), restricted=True)
    with pytest.raises(NotForThisUse):
        await scene.operating.token("acme@restricted")


async def test_locked_it_says_so_once_and_everywhere(scene: Scene) -> None:
    operating = scene.operating
    scene.log_in()
    scene.make_key()
    operating.refresh()
    assert (operating.status()["locked"], operating.status()["keys"], scene.told) == (False, 1, [])
    operating.lock()
    operating.look()
    assert scene.told == [{"pid": 1, "locked": True}]
    status = operating.status()
    assert (status["locked"], status["keys"]) == (True, 0)
    accounts = status["accounts"]
    assert isinstance(accounts, list)
    assert [account["health"] for account in accounts] == [Health.LOCKED]
    with pytest.raises(StoreLocked):
        await operating.token("acme")
    await operating.unlock(None)
    assert scene.told[1:] == [{"pid": 1, "locked": False}]
    assert operating.status()["keys"] == 1


async def test_what_waits_for_nobody_cannot_be_settled(scene: Scene) -> None:
    assert scene.operating.pending() == []
    with pytest.raises(UnknownApproval):
        scene.operating.settle("ffff", approved=True, by="somebody")


async def test_who_asks_it_to_stop_says_how(scene: Scene) -> None:
    scene.operating.stop(now=False)
    scene.operating.stop(now=True)
    assert scene.stopped == [False, True]

"""os.environ while accounts' variables are in it, and exactly as it was afterwards."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator

import pytest

from tests.support.brokers import broker_of
from valetkey import sdk
from valetkey.broker import Broker
from valetkey.credential import ApiKey, CredentialRef, Secret
from valetkey.errors import NotLoggedIn, UsageError
from valetkey.provider import Api, AuthMethod, Inject, Parameter, Provider
from valetkey.store import Record

BEARER = (Inject(set={"authorization": "Bearer {key}"}),)
ACME = Provider(
    id="acme",
    name="Acme",
    api=Api(base_url="https://api.acme.test/v1", hosts=("api.acme.test",)),
    auth=(
        AuthMethod(
            id="api-key",
            kind="api-key",
            environment=("ACME_API_KEY", "ACME_KEY"),
            inject=BEARER,
            parameters=(Parameter(key="region", label="Region", default="here", environment=("ACME_REGION",)),),
        ),
    ),
)
OTHER = Provider(
    id="other",
    name="Other",
    api=Api(base_url="https://api.other.test", hosts=("api.other.test",)),
    auth=(AuthMethod(id="api-key", kind="api-key", environment=("OTHER_API_KEY",), inject=BEARER),),
)
RIVAL = Provider(
    id="rival",
    name="Rival",
    api=Api(base_url="https://api.rival.test", hosts=("api.rival.test",)),
    auth=(AuthMethod(id="api-key", kind="api-key", environment=("ACME_API_KEY",), inject=BEARER),),
)


@pytest.fixture
def broker() -> Iterator[Broker]:
    opened = broker_of(ACME, OTHER, RIVAL)
    for name in ("acme", "acme@work", "other", "rival"):
        provider, _, account = name.partition("@")
        opened.store.save(
            Record(
                ref=CredentialRef(provider=provider, account=account or "default"),
                credential=ApiKey(
                    method="api-key",
                    key=Secret(f"key of {name}"),
                    parameters={"region": "there"} if provider == "acme" else {},
                ),
                hosts=(f"api.{provider}.test",),
            )
        )
    yield opened
    opened.close()


def test_the_accounts_variables_are_set_and_all_others_of_its_provider_are_not(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACME_KEY", "of somebody else")
    monkeypatch.setenv("ACME_REGION", "elsewhere")
    monkeypatch.setenv("UNCONCERNED", "stays")
    before = dict(os.environ)
    with sdk.environment("acme@work", "other", broker=broker):
        changed = {
            n: os.environ.get(n) for n in os.environ.keys() | before.keys() if os.environ.get(n) != before.get(n)
        }
        assert changed == {
            "ACME_API_KEY": "key of acme@work",
            "ACME_KEY": None,
            "ACME_REGION": "there",
            "OTHER_API_KEY": "key of other",
        }
    assert dict(os.environ) == before


def test_what_was_unset_empty_or_changed_meanwhile_is_as_it_was(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACME_KEY", "")
    before = dict(os.environ)
    with sdk.environment("acme", broker=broker):
        os.environ["ACME_API_KEY"] = "changed by the program"
        del os.environ["ACME_REGION"]
    assert dict(os.environ) == before


def test_an_exception_and_a_closed_stream_restore_too(broker: Broker) -> None:
    before = dict(os.environ)

    def stream() -> Iterator[str]:
        with sdk.environment("acme", broker=broker):
            yield os.environ["ACME_API_KEY"]
            yield "never read"

    with pytest.raises(ZeroDivisionError), sdk.environment("acme", broker=broker):
        raise ZeroDivisionError
    assert dict(os.environ) == before
    parts = stream()
    assert next(parts) == "key of acme"
    parts.close()  # type: ignore[attr-defined]  # a generator has it
    assert dict(os.environ) == before


@pytest.mark.parametrize("first_to_end", [0, 1])
def test_contexts_that_overlap_may_end_in_any_order(broker: Broker, first_to_end: int) -> None:
    before = dict(os.environ)
    contexts = [sdk.environment("acme", broker=broker), sdk.environment("acme@work", broker=broker)]
    for context in contexts:
        context.__enter__()
    assert os.environ["ACME_API_KEY"] == "key of acme@work"
    contexts[first_to_end].__exit__(None, None, None)
    assert os.environ["ACME_API_KEY"] == ("key of acme@work" if first_to_end == 0 else "key of acme")
    contexts[1 - first_to_end].__exit__(None, None, None)
    assert dict(os.environ) == before


def test_one_context_may_be_entered_again(broker: Broker) -> None:
    before = dict(os.environ)
    context = sdk.environment("acme", broker=broker)
    with context, context:
        assert os.environ["ACME_API_KEY"] == "key of acme"
    assert dict(os.environ) == before


def test_threads_that_overlap_leave_everything_as_it_was(broker: Broker) -> None:
    before = dict(os.environ)
    all_in = threading.Barrier(8)
    shown: list[str] = []

    def work(name: str) -> None:
        for _ in range(20):
            with sdk.environment(name, broker=broker):
                all_in.wait(timeout=30)
                shown.append(os.environ["ACME_API_KEY"])

    threads = [threading.Thread(target=work, args=("acme@work" if n % 2 else "acme",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(shown) <= {"key of acme", "key of acme@work"}
    assert len(shown) == 160
    assert dict(os.environ) == before


@pytest.mark.anyio
async def test_tasks_that_overlap_or_are_cancelled_leave_everything_as_it_was(broker: Broker) -> None:
    before = dict(os.environ)
    inside, enough = asyncio.Event(), asyncio.Event()

    async def short() -> None:
        async with sdk.environment("acme", broker=broker):
            await enough.wait()

    async def endless() -> None:
        async with sdk.environment("acme@work", broker=broker):
            inside.set()
            await asyncio.Event().wait()

    first, second = asyncio.create_task(short()), asyncio.create_task(endless())
    await inside.wait()
    enough.set()
    await first
    assert os.environ["ACME_API_KEY"] == "key of acme@work"
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("names", "error"),
    [(("acme", "other@nobody"), NotLoggedIn), (("acme", "rival"), UsageError), (("acme", "acme@work"), UsageError)],
)
def test_what_cannot_be_set_whole_sets_nothing(broker: Broker, names: tuple[str, ...], error: type[Exception]) -> None:
    before = dict(os.environ)
    with pytest.raises(error), sdk.environment(*names, broker=broker):
        raise AssertionError("was entered")
    assert dict(os.environ) == before


def test_no_secret_is_in_the_repr(broker: Broker) -> None:
    context = sdk.environment("acme", broker=broker)
    with context:
        assert repr(context) == "Environment('acme')"

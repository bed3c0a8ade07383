"""What is minted is kept within bounds, made once for all who ask, made anew in time, and never on the loop."""

from __future__ import annotations

import asyncio
import ssl
import threading
from datetime import timedelta

import pytest

from valetkey.gateway.contexts import Contexts, Minted
from valetkey.testing.clock import FakeClock

pytestmark = pytest.mark.anyio

SHARED = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


class Mint:
    """Mints for next to nothing, counts, and waits where it is told to."""

    def __init__(self, clock: FakeClock, *, context: ssl.SSLContext | None = None) -> None:
        self.hosts: list[str] = []
        self.threads: set[threading.Thread] = set()
        self.begun = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.failing = False
        self._clock = clock
        self._context = context

    def __call__(self, host: str) -> Minted:
        self.hosts.append(host)
        self.threads.add(threading.current_thread())
        self.begun.set()
        self.gate.wait(60)
        if self.failing:
            raise ValueError(host)
        now = self._clock.now()
        context = self._context or ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        return Minted(context=context, begins=now - timedelta(hours=1), ends=now + timedelta(hours=23))


@pytest.fixture
def mint(clock: FakeClock) -> Mint:
    return Mint(clock)


@pytest.mark.parametrize("hosts", [10_000, pytest.param(100_000, marks=pytest.mark.soak)])
async def test_any_number_of_hosts_takes_the_room_of_a_thousand(hosts: int, clock: FakeClock) -> None:
    contexts = Contexts(Mint(clock, context=SHARED), clock, limit=1000)
    most = 0
    for first in range(0, hosts, 500):
        await asyncio.gather(*(contexts.obtain(f"h{first + n}.test") for n in range(500)))
        most = max(most, len(contexts))
    contexts.close()
    assert most == len(contexts) == 1000
    assert contexts.get(f"h{hosts - 1}.test") is SHARED
    assert contexts.get(f"h{hosts - 1001}.test") is None


async def test_what_was_not_asked_for_longest_goes_first(clock: FakeClock, mint: Mint) -> None:
    contexts = Contexts(mint, clock, limit=2)
    first = await contexts.obtain("a.test")
    await contexts.obtain("b.test")
    assert contexts.get("a.test") is first
    await contexts.obtain("c.test")
    assert (contexts.get("a.test"), contexts.get("b.test")) == (first, None)
    contexts.close()


async def test_all_who_ask_at_once_get_the_same_one(clock: FakeClock, mint: Mint) -> None:
    contexts = Contexts(mint, clock, limit=10)
    mint.gate.clear()
    asking = [asyncio.create_task(contexts.obtain("a.test")) for _ in range(50)]
    await asyncio.sleep(0)
    asking[0].cancel()
    asking[7].cancel()
    await asyncio.sleep(0)
    mint.gate.set()
    found = await asyncio.gather(*asking, return_exceptions=True)
    assert sum(isinstance(one, asyncio.CancelledError) for one in found) == 2
    assert {one for one in found if isinstance(one, ssl.SSLContext)} == {contexts.get("a.test")}
    assert mint.hosts == ["a.test"]
    contexts.close()


async def test_the_loop_goes_on_while_one_is_made(clock: FakeClock, mint: Mint) -> None:
    contexts = Contexts(mint, clock, limit=10)
    mint.gate.clear()
    asking = asyncio.create_task(contexts.obtain("a.test"))
    await asyncio.to_thread(mint.begun.wait, 20)
    assert not asking.done()
    mint.gate.set()
    await asking
    assert threading.current_thread() not in mint.threads
    contexts.close()


@pytest.mark.parametrize(("seconds", "kept"), [(0, True), (22 * 3600 - 1, True), (22 * 3600, False), (90000, False)])
async def test_it_is_made_anew_an_hour_before_its_end(seconds: float, kept: bool, clock: FakeClock, mint: Mint) -> None:
    contexts = Contexts(mint, clock, limit=10)
    first = await contexts.obtain("a.test")
    clock.advance(seconds)
    assert (contexts.get("a.test") is first) == kept
    assert (await contexts.obtain("a.test") is first) == kept
    contexts.close()


async def test_it_is_made_anew_when_the_clock_is_set_back_before_its_beginning(clock: FakeClock, mint: Mint) -> None:
    contexts = Contexts(mint, clock, limit=10)
    first = await contexts.obtain("a.test")
    clock.jump(-3600)
    assert contexts.get("a.test") is first
    clock.jump(-1)
    assert contexts.get("a.test") is None
    contexts.close()


async def test_a_failure_is_told_to_all_and_not_kept(clock: FakeClock, mint: Mint) -> None:
    contexts = Contexts(mint, clock, limit=10)
    mint.failing = True
    found = await asyncio.gather(*(contexts.obtain("a.test") for _ in range(3)), return_exceptions=True)
    assert [type(one) for one in found] == [ValueError] * 3
    mint.failing = False
    assert await contexts.obtain("a.test") is contexts.get("a.test")
    contexts.close()


async def test_what_was_begun_before_it_was_forgotten_is_not_kept(clock: FakeClock, mint: Mint) -> None:
    contexts = Contexts(mint, clock, limit=10)
    mint.gate.clear()
    early = asyncio.create_task(contexts.obtain("a.test"))
    await asyncio.to_thread(mint.begun.wait, 20)
    contexts.forget()
    late = asyncio.create_task(contexts.obtain("a.test"))
    await asyncio.sleep(0)
    mint.gate.set()
    assert await early is not await late
    assert contexts.get("a.test") is await late
    contexts.close()

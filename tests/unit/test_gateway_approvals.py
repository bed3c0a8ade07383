"""Requests that wait for a person: until one decides, the time is over, or the client goes away."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import asdict
from datetime import timedelta

import pytest

from valetkey.credential import CredentialRef
from valetkey.errors import AuditUnwritable, UnknownApproval
from valetkey.gateway.approvals import Approvals, Outcome
from valetkey.gateway.decide import Client, Forward, Hold, Matched
from valetkey.gateway.normal import Target
from valetkey.testing.clock import START, FakeClock, SteppedClock

pytestmark = pytest.mark.anyio

ACME = CredentialRef(provider="acme")
TOKEN = "vk_" + "0" * 12 + "_" + "ab" * 32
KEY = "sk-" + "waits" * 8


def client(id: str = "one") -> Client:
    return Client(id=id, kind="key", grants=())


def hold(path: str = "/v1/images/generations", query: str | None = None, reason: str = "images cost money") -> Hold:
    target = Target(scheme="https", host="api.acme.example", port=443, path=path, query=query)
    matched = Matched(text='ask = "POST api.acme.example/**"', place="policy.toml:7", name="images")
    forward = Forward(method="POST", target=target, how="inject", grant=ACME, rule=matched, reason="")
    return Hold(then=forward, rule=matched, reason=reason)


async def settled_down() -> None:
    """Let every task that can go on go on."""
    for _ in range(10):
        await asyncio.sleep(0)


async def begun(approvals: Approvals, *, of: str = "one", **more: str) -> asyncio.Task[Outcome]:
    task = asyncio.ensure_future(approvals.wait(hold(**more), client=client(of), name=""))
    await settled_down()
    return task


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
def approvals(clock: SteppedClock) -> Approvals:
    return Approvals(clock)


@pytest.mark.parametrize(("approved", "outcome"), [(True, "approved"), (False, "denied")])
async def test_a_person_decides_and_is_recorded(
    approvals: Approvals, clock: SteppedClock, approved: bool, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    task = await begun(approvals)
    (pending,) = approvals.pending()
    clock.advance(179)
    await settled_down()
    assert not task.done()
    with caplog.at_level(logging.WARNING):
        assert approvals.settle(pending.id, approved, "alice") == pending
        assert approvals.pending() == []
        assert await task == outcome
    (settled,) = approvals.recent()
    assert (settled.pending, settled.outcome, settled.by) == (pending, outcome, "alice")
    assert settled.at == START + timedelta(seconds=179)
    assert caplog.messages == [
        f"{outcome} by alice: POST https://api.acme.example/v1/images/generations of one, held by policy.toml:7"
    ]


async def test_after_180_seconds_it_is_over(approvals: Approvals, clock: SteppedClock) -> None:
    task = await begun(approvals)
    (pending,) = approvals.pending()
    assert (pending.since, pending.until) == (START, START + timedelta(seconds=180))
    clock.advance(179.5)
    await settled_down()
    assert not task.done()
    clock.advance(0.5)
    assert await task == "timed-out"
    assert approvals.pending() == []
    with pytest.raises(UnknownApproval):
        approvals.settle(pending.id, True, "alice")
    assert [(s.outcome, s.by) for s in approvals.recent()] == [("timed-out", "")]


async def test_after_a_suspend_nobody_approves_what_is_over(approvals: Approvals, clock: SteppedClock) -> None:
    """The timer has not woken yet."""
    task = await begun(approvals)
    (pending,) = approvals.pending()
    FakeClock.advance(clock, 180)
    assert approvals.pending() == []
    with pytest.raises(UnknownApproval):
        approvals.settle(pending.id, True, "alice")
    clock.advance(0)
    assert await task == "timed-out"


async def test_a_timer_that_wakes_too_early_waits_on(approvals: Approvals, clock: SteppedClock) -> None:
    task = await begun(approvals)
    clock._sleepers[0][1].set_result(None)
    await settled_down()
    assert not task.done()
    assert clock.waits == [180, 180]
    clock.advance(180)
    assert await task == "timed-out"


async def test_a_client_that_goes_away_takes_its_request_with_it(approvals: Approvals) -> None:
    before = asyncio.all_tasks()
    task = await begun(approvals)
    (pending,) = approvals.pending()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert approvals.pending() == []
    with pytest.raises(UnknownApproval):
        approvals.settle(pending.id, True, "alice")
    assert [s.outcome for s in approvals.recent()] == ["gone"]
    await settled_down()
    assert asyncio.all_tasks() == before, "the timer is gone too"


async def test_a_decision_is_made_once_and_for_one(approvals: Approvals) -> None:
    first, second = await begun(approvals), await begun(approvals)
    one, other = approvals.pending()
    approvals.settle(one.id, False, "alice")
    with pytest.raises(UnknownApproval):
        approvals.settle(one.id, True, "mallory")
    assert await first == "denied"
    assert not second.done()
    approvals.settle(other.id, True, "bob")
    assert await second == "approved"
    assert [s.by for s in approvals.recent()] == ["bob", "alice"]
    with pytest.raises(UnknownApproval):
        approvals.settle("", True, "alice")


async def test_a_restart_approves_nothing(approvals: Approvals, clock: SteppedClock) -> None:
    task = await begun(approvals)
    (pending,) = approvals.pending()
    after = Approvals(clock)
    assert after.pending() == []
    with pytest.raises(UnknownApproval):
        after.settle(pending.id, True, "alice")
    assert not task.done()
    task.cancel()


async def test_what_is_shown_has_no_secret_and_no_control_character(
    approvals: Approvals, caplog: pytest.LogCaptureFixture
) -> None:
    held = hold(path=f"/v1/keys/{KEY}", query=f"key={KEY}", reason=f"no {TOKEN}")
    with caplog.at_level(logging.DEBUG):
        task = asyncio.ensure_future(approvals.wait(held, client=client(), name=f"\x1b[2J {KEY} " + "x" * 1000))
        await settled_down()
        (pending,) = approvals.pending()
        approvals.settle(pending.id, True, f"alice\n{KEY}")
        await task
    assert (pending.client, pending.account, pending.method) == ("one", "acme@default", "POST")
    assert pending.url == "https://api.acme.example/v1/keys/[secret]"
    assert (pending.rule, pending.place) == ('ask = "POST api.acme.example/**"', "policy.toml:7")
    shown = f"{asdict(pending)} {approvals.recent()} {caplog.text}"
    assert KEY not in shown
    assert TOKEN not in shown
    assert "\x1b" not in pending.client_name
    assert len(pending.client_name) == 300
    assert approvals.recent()[0].by == "alice?[secret]"


async def test_one_client_has_20_waiting_and_all_have_100(approvals: Approvals) -> None:
    waiting = [await begun(approvals, of=f"c{number // 20}") for number in range(40)]
    assert approvals.no_room(client("c0")) == "20 requests of this client wait for a decision already"
    assert await approvals.wait(hold(), client=client("c0")) == "denied"
    assert approvals.no_room(client("c2")) is None
    waiting += [await begun(approvals, of=f"c{2 + number // 20}") for number in range(60)]
    assert approvals.no_room(client("new")) == "100 requests wait for a decision already"
    assert await approvals.wait(hold(), client=client("new")) == "denied"
    assert len(approvals.pending()) == 100
    approvals.settle(approvals.pending()[0].id, False, "alice")
    await settled_down()
    assert approvals.no_room(client("new")) is None
    assert approvals.no_room(client("c0")) is None
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert approvals.pending() == []


async def test_what_became_of_them_is_kept_for_the_last_200(approvals: Approvals) -> None:
    for number in range(205):
        task = await begun(approvals)
        approvals.settle(approvals.pending()[0].id, True, f"nr {number}")
        await task
    assert [s.by for s in approvals.recent()][:2] == ["nr 204", "nr 203"]
    assert len(approvals.recent()) == 200


async def test_what_cannot_be_recorded_is_not_decided(approvals: Approvals) -> None:
    heard: list[tuple[str, bool, str]] = []

    def fails(*_: object) -> None:
        raise AuditUnwritable("the disk is full", hint="free some space")

    task = await begun(approvals)
    (pending,) = approvals.pending()
    approvals.decided = fails
    with pytest.raises(AuditUnwritable):
        approvals.settle(pending.id, True, "alice")
    assert approvals.pending() == [pending]
    approvals.decided = lambda pending, approved, by, scope: heard.append((pending.id, approved, by))
    approvals.settle(pending.id, True, "alice")
    assert await task == "approved"
    assert heard == [(pending.id, True, "alice")]

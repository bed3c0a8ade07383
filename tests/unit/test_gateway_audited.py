"""What the gateway puts into the audit, and what it does where that cannot be written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.audits import by_both
from tests.support.gateway import Raw, acme, running_gateway
from tests.support.rows import row
from tests.support.stored import opened
from tests.support.upstream import Upstream, ordinary
from valetkey.audit import reader
from valetkey.audit.recorder import Audit
from valetkey.audit.signing import pinned_key
from valetkey.config import Paths
from valetkey.errors import AuditError, StoreError
from valetkey.gateway.answers import _HINTS
from valetkey.gateway.approvals import Pending
from valetkey.gateway.audited import NO_DENIALS, Audited
from valetkey.testing.clock import FakeClock


@pytest.fixture
def paths(home: Path) -> Paths:
    return Paths(home=home)


def entries(paths: Paths) -> list[dict[str, Any]]:
    return reader.newest(paths.audit, 10_000, wanted=lambda entry: True)


def get(client: Raw, token: str) -> tuple[int, bytes]:
    request = f"GET /acme/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n"
    status, _, body = client.send(request.encode()).answer()
    return status, body


# --- uses ------------------------------------------------------------------------------------


def test_a_use_is_in_the_audit_before_its_first_byte_goes_out(home: Path, paths: Paths) -> None:
    seen: list[list[str]] = []

    def answer(_: object) -> bytes:
        seen.append([e["kind"] for e in entries(paths)])
        return b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

    audit = Audit(paths, FakeClock())
    with (
        Upstream(ordinary(answer)) as upstream,
        running_gateway(acme(upstream.url), home=home, audit=audit) as running,
        running.raw() as client,
    ):
        token = running.key("acme")
        assert [get(client, token)[0] for _ in range(5)] == [200] * 5
    assert seen == [["use"]] * 5
    (entry,) = entries(paths)
    assert (entry["who"], entry["account"]) == (f"key:{token[3:15]}", "acme@default")
    assert [counted.further for counted in audit.take_over(all=True)] == [4]
    audit.close()


def test_without_its_entry_no_request_is_sent(home: Path, paths: Paths) -> None:
    audit = Audit(paths, FakeClock())
    with Upstream(ordinary()) as upstream, running_gateway(acme(upstream.url), home=home, audit=audit) as running:
        token = running.key("acme")
        paths.audit.mkdir()
        with running.raw() as client:
            status, body = get(client, token)
            assert status in (502, 503)
            assert b"is not a file" in body
            assert upstream.requests == []
            paths.audit.rmdir()
            assert get(client, token)[0] == 200
    assert [e["kind"] for e in entries(paths)] == ["use"]
    audit.close()


# --- refusals --------------------------------------------------------------------------------


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def audited(paths: Paths, clock: FakeClock) -> Iterator[Audited]:
    store = opened(paths.home)
    made = Audited(Audit(paths, clock), store=store, paths=paths, clock=clock)
    yield made
    made.audit.close()
    store.close()


def test_refusals_alike_are_one_entry_a_minute_and_a_count(audited: Audited, paths: Paths, clock: FakeClock) -> None:
    refused = row(client="ab12", account="acme@default", status=403, outcome="denied", path="/v1/files")
    audited([refused] * 3)
    audited([refused, row(client="", account="", status=401, outcome="key_refused"), row()])
    told = [(e["kind"], e["who"], e["account"], e["detail"].get("code")) for e in entries(paths)]
    assert told == [("denial", "key:ab12", "acme@default", "denied"), ("denial", "unknown", "", "key_refused")]
    assert entries(paths)[0]["detail"]["path"] == "/v1/files"
    assert not audited.due
    clock.advance(60)
    assert audited.due
    audited.turn(audited.take_over())
    assert not audited.due
    assert entries(paths)[-1]["detail"] == {"code": "denied", "further": 3}
    audited([refused])
    assert [e["kind"] for e in entries(paths)] == ["denial", "denial", "denials", "denial"]


def test_what_is_no_request_is_no_denial(audited: Audited, paths: Paths) -> None:
    for outcome in sorted(NO_DENIALS):
        audited([row(status=400, outcome=outcome)])
    audited([row(status=404), row(status=502, outcome="upstream_failed")])
    assert entries(paths) == []
    assert {code for code in _HINTS if code in NO_DENIALS} == {"malformed"}


def test_a_minute_that_is_over_is_signed(audited: Audited, paths: Paths, clock: FakeClock) -> None:
    audited.audit.note("key:ab12", "acme@default")
    audited.audit.note("key:ab12", "acme@default")
    audited._store.keys.ready()
    audited.turn(audited.take_over())
    key = pinned_key(paths)
    assert key is not None
    assert by_both(reader.lines(paths.audit), key) is None
    assert [e["kind"] for e in entries(paths)] == ["use", "uses"]


# --- approvals -------------------------------------------------------------------------------


def pending(clock: FakeClock) -> Pending:
    return Pending(
        id="1",
        client="ab12",
        client_name="ci",
        account="acme@default",
        method="POST",
        url="https://api.acme.example/v1/files",
        rule="ask POST **",
        place="policy.toml:3",
        reason="",
        since=clock.now(),
        until=clock.now(),
    )


def test_what_a_person_decides_is_recorded(audited: Audited, paths: Paths, clock: FakeClock) -> None:
    audited.decided(pending(clock), True, "ada")
    (entry,) = entries(paths)
    assert (entry["kind"], entry["who"], entry["account"]) == ("approval", "person:ada", "acme@default")
    assert entry["detail"]["approved"] is True
    assert entry["detail"]["client"] == "key:ab12"


def test_without_its_entry_nothing_is_approved_and_a_no_stays_a_no(
    audited: Audited, paths: Paths, clock: FakeClock
) -> None:
    paths.audit.mkdir()
    with pytest.raises((AuditError, StoreError)):
        audited.decided(pending(clock), True, "ada")
    audited.decided(pending(clock), False, "ada")

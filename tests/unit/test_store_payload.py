"""What is sealed reads back as it was, and any other shape is a damaged record that is not quoted."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from valetkey.credential import CredentialRef, ExchangedKey, OAuthToken, Secret
from valetkey.errors import RecordDamaged
from valetkey.store import Record
from valetkey.stores.payload import payload_of, read_payload, time_from, time_to
from valetkey.testing.clock import START

GRANT = OAuthToken(method="device", access_token=Secret("canary-at"), issued_at=START)
RECORD = Record(
    ref=CredentialRef(provider="acme"),
    credential=ExchangedKey(method="device", key=Secret("canary-key"), grant=GRANT, issued_at=START),
    hosts=("api.example.org",),
)


def test_it_reads_back() -> None:
    assert read_payload(payload_of(RECORD)) == (RECORD.credential, ("api.example.org",), (), "", False)


def _spoilt(change: Callable[[dict[str, Any]], object]) -> bytes:
    value = json.loads(payload_of(RECORD))
    change(value)
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    "plaintext",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"canary",
        b"\xff\xfe",
        b"[" * 100_000,
        _spoilt(lambda v: v.update(v=2)),
        _spoilt(lambda v: v.update(v=True)),
        _spoilt(lambda v: v.update(more=1)),
        _spoilt(lambda v: v.pop("hosts")),
        _spoilt(lambda v: v.update(hosts="canary")),
        _spoilt(lambda v: v.update(hosts=[1])),
        _spoilt(lambda v: v.update(restricted=0)),
        _spoilt(lambda v: v.update(base_url=None)),
        _spoilt(lambda v: v.update(credential=[])),
        _spoilt(lambda v: v["credential"].update(kind="canary")),
        _spoilt(lambda v: v["credential"].update(kind="ambient")),
        _spoilt(lambda v: v["credential"].update(kind="api-key")),
        _spoilt(lambda v: v["credential"].update(more=1)),
        _spoilt(lambda v: v["credential"].update(secrets={})),
        _spoilt(lambda v: v["credential"].update(secrets={"key": 1})),
        _spoilt(lambda v: v["credential"].update(secrets={"key": "a", "other": "b"})),
        _spoilt(lambda v: v["credential"].update(parameters={"a": None})),
        _spoilt(lambda v: v["credential"].update(issued_at="canary")),
        _spoilt(lambda v: v["credential"].update(issued_at=None)),
        _spoilt(lambda v: v["credential"].update(issued_at="2026-11-22T12:00:00")),
        _spoilt(lambda v: v["credential"].update(issued_at="2026-11-22T12:00:00+02:00")),
        _spoilt(lambda v: v["credential"].update(grant=v["credential"].copy())),
        _spoilt(lambda v: v["credential"]["grant"].update(secrets={"refresh_token": "canary"})),
    ],
)
def test_any_other_shape_is_damaged_and_not_quoted(plaintext: bytes) -> None:
    with pytest.raises(RecordDamaged) as caught:
        read_payload(plaintext)
    assert "canary" not in f"{caught.value}{caught.value.hint}{caught.value.__cause__!r}"
    assert caught.value.__suppress_context__


def test_times_are_utc_and_sort_as_text() -> None:
    later = START + timedelta(microseconds=1)
    assert time_to(START.astimezone(timezone(timedelta(hours=9)))) == "2026-11-22T12:00:00.000000+00:00"
    assert str(time_to(START)) < str(time_to(later))
    assert time_from(time_to(later)) == later
    assert time_from(None) is None
    assert time_to(None) is None
    with pytest.raises(ValueError, match="without a zone"):
        time_to(datetime(2026, 11, 22))
    assert datetime.max.replace(tzinfo=UTC) == time_from(time_to(datetime.max.replace(tzinfo=UTC)))

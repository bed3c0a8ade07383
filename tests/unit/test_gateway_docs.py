"""docs/gateway.md is held to what is there: its codes, its numbers, what it says is taken out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from valetkey import errors
from valetkey.gateway import answers, approvals, body, decide, dial, exchange, message, server, upstream

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "gateway.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return re.split(r"^## ", TEXT.partition(f"\n## {title}\n")[2], flags=re.MULTILINE)[0]


def table() -> dict[str, str]:
    """Give the statuses of each code."""
    rows = re.findall(r"^\| (`.+?`) \| (.+?) \|", section("What it answers itself"), re.MULTILINE)
    return {code: status for codes, status in rows for code in re.findall(r"`(\w+)`", codes)}


def written() -> dict[str, set[str]]:
    """Give the codes and statuses that stand in the gateway's own calls."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "src" / "valetkey" / "gateway").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        calls = re.findall(r'(?:failed|Answer)\(\s*(\d{3}|\w+(?:\.\w+)*),\s*"(\w+)"', text)
        calls += [(s, c) for c, s in re.findall(r'code="(\w+)",\s*status=(\d{3})', text)]
        for status, code in calls:
            found.setdefault(code, set()).update([status] if status.isdigit() else [])
    return found


def test_every_answer_of_its_own_is_in_the_table() -> None:
    told = table()
    own = written()
    assert {"key_refused", "upstream_failed", "malformed"} <= set(own)
    # Stand in the trace alone.
    del own["rewritten"], own["ok"], own["access"]
    for code, statuses in own.items():
        assert code in told, code
        assert statuses <= set(re.findall(r"\d{3}", told[code])), code
    assert set(get_args(decide.RefusalCode)) <= set(told)


@pytest.mark.parametrize("code", ["approval_denied", "approval_timed_out"])
def test_a_decision_of_a_person_is_in_the_table(code: str) -> None:
    assert table()[code] == "403"


@pytest.mark.parametrize(
    "kind",
    [
        errors.NeedsLogin,
        errors.HostsNotAccepted,
        errors.NotForThisUse,
        errors.AddressRefused,
        errors.ConnectTimeout,
        errors.NameNotResolved,
        errors.Unreachable,
        errors.TlsFailed,
        errors.RefreshFailed,
        errors.RefreshBusy,
        errors.StoreLocked,
        errors.BaseCredentialRefused,
        errors.RoleDenied,
        errors.RoleInvalid,
        errors.IssuerUnavailable,
        errors.EndpointUnavailable,
    ],
)
def test_an_error_has_the_status_that_is_told(kind: type[errors.ValetkeyError]) -> None:
    error = kind("x", hint="y", sent=False) if issubclass(kind, errors.TransportError) else kind("x", hint="y")
    made = answers.of_error(error)
    assert table()[made.code] == str(made.status)


def test_the_numbers_are_those_of_the_code() -> None:
    limits = server.EngineSettings()
    rows = dict(re.findall(r"^\| (.+?) \| (.+?) \|$", section("Limits"), re.MULTILINE))
    assert rows["a request's head, a TLS handshake"] == f"{limits.head_seconds:.0f} s"
    assert rows["idle connection of a client"] == f"{limits.idle_seconds:.0f} s"
    assert rows["the head of an answer"] == f"{limits.response_seconds:.0f} s"
    assert rows["the next byte of a body, either way, and of a tunnel or WebSocket"] == f"{limits.stream_seconds:.0f} s"
    assert rows["a request that waits for a person"] == f"{approvals.WAIT_SECONDS:.0f} s"
    assert limits.max_body_bytes == 0
    assert body.MAX_HELD_BYTES == 1 << 20
    heads = rows["head of a request or an answer; its trailers"]
    assert heads.startswith(f"{message.MAX_HEAD_BYTES >> 10} KiB, {message.MAX_HEADERS} headers")
    dialling = rows["connecting to a provider, all its addresses together"]
    assert dialling == f"{dial._SECONDS:.0f} s, {dial._MOST} addresses"
    kept = f"kept for {upstream.IDLE_SECONDS:.0f} s, {upstream.MAX_IDLE} for each"
    assert kept in TEXT
    assert f"every {exchange._HALF_CLOSED_SECONDS:.0f} s" in TEXT


def test_what_is_taken_out_is_named() -> None:
    taken = section("On the way out")
    for name in message.CREDENTIALS | message._HOP_BY_HOP | (message._IDENTITY - {b"x-forwarded"}):
        assert f"`{name.decode()}`" in taken, name


def test_the_links_lead_somewhere() -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]+)(?:#([^)]+))?\)", TEXT):
        page = (ROOT / "docs" / target).read_text(encoding="utf-8")
        headings = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in re.findall(r"^#+ (.+)$", page, re.M)}
        assert not anchor or anchor in headings, (target, anchor)

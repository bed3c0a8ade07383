"""`valetkey trace` as a user types it, while rows are written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import CommandLine
from tests.support.rows import row
from valetkey.clock import SystemClock
from valetkey.gateway.row import Row
from valetkey.gateway.trace import Trace

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def line(home: Path) -> CommandLine:
    return CommandLine(home=home)


@pytest.fixture
def trace(home: Path) -> Iterator[Trace]:
    made = Trace(home / "trace.db", SystemClock())
    yield made
    made.close()


def now() -> float:
    return datetime.now().timestamp()


def put(trace: Trace, *rows: Row) -> None:
    for each in rows:
        trace.add(each)
    trace.flush()


def test_nothing_recorded_is_no_error(line: CommandLine, home: Path) -> None:
    done = line("trace")
    assert (done.status, done.out) == (0, "")
    assert "nothing is recorded yet" in done.err
    assert line("trace", "--json").json == {"requests": []}
    assert list(home.iterdir()) == []


def test_each_request_is_a_line_the_newest_last(line: CommandLine, trace: Trace) -> None:
    trace.name_clients({"k1": "laptop"})
    put(
        trace,
        row(at=now(), duration_ms=1234.5, input_tokens=1234, output_tokens=56_789),
        row(at=now(), client="k2", account="", status=403, outcome="denied", model=None, path="/v1/files"),
        row(at=now(), status=0, outcome="client_gone", input_tokens=None, output_tokens=None, duration_ms=200_000),
    )
    head, *lines = line("trace").out.splitlines()
    assert head.split() == ["time", "client", "account", "method", "took", "tokens", "request"]
    assert [re.sub(r"^\d\d:\d\d:\d\d ", "", each) for each in lines] == [
        "laptop    acme@default   POST    200 1.2s  1.2k+56k  api.acme.example/v1/chat/completions",
        "k2        -              POST    403 2ms   11+22     denied: api.acme.example/v1/files",
        "laptop    acme@default   POST    -   3m    -         client_gone: api.acme.example/v1/chat/completions",
    ]


def test_lines_fit_a_terminal_and_errors_have_a_colour(line: CommandLine, trace: Trace) -> None:
    put(trace, row(at=now(), client="k" * 40, account="acme@" + "a" * 40), row(at=now(), status=500), row(at=now()))
    put(trace, row(at=now(), status=403, outcome="denied"))
    with line.terminal("trace", environ={"COLUMNS": "80"}) as terminal:
        assert terminal.end() == 0
    shown = terminal.shown.splitlines()
    assert len(shown) == 5
    assert all(len(re.sub(r"\x1b\[\d+m", "", each)) <= 80 for each in shown)
    assert [code for each in shown[1:] for code in re.findall(r"\x1b\[(3\d)m", each)] == ["31", "33"]
    assert shown[1].endswith("…/chat/completions")
    assert "denied: …" in shown[4]


def test_days_are_shown_where_not_all_is_of_today(line: CommandLine, trace: Trace) -> None:
    put(trace, row(at=now() - 3 * 86400), row(at=now()))
    day = (datetime.now() - timedelta(days=3)).strftime("%m-%d ")
    assert line("trace").out.splitlines()[1].startswith(day)


def test_of_one_client_no_line_names_it(line: CommandLine, trace: Trace) -> None:
    put(trace, row(at=now(), path="/1", client="run:0123456789ab"))
    head, request = line("trace", "--client", "run:0123456789ab").out.splitlines()
    assert ("client" in head, "run" in request, request.endswith("/1")) == (False, False, True)
    assert line("trace").out.splitlines()[0].split()[1] == "client"


def test_filters_choose(line: CommandLine, trace: Trace) -> None:
    trace.name_clients({"k2": "ci"})
    put(
        trace,
        row(at=now() - 7200, path="/1"),
        row(at=now() - 1200, path="/2", client="k2"),
        row(at=now(), path="/3", account="other@work"),
    )

    def found(*words: str) -> list[str]:
        return [request["path"] for request in line("trace", "--json", *words).json["requests"]]

    assert found() == ["/1", "/2", "/3"]
    assert found("--limit", "2") == ["/2", "/3"]
    assert found("--client", "k2") == found("--client", "ci") == ["/2"]
    assert found("--account", "other") == found("--account", "other@work") == ["/3"]
    assert found("--since", "1h") == ["/2", "/3"]
    assert found("--since", (datetime.now() - timedelta(minutes=5)).isoformat()) == ["/3"]
    done = line("trace", "--client", "nobody")
    assert (done.status, done.out) == (0, "")
    assert "no such request" in done.err
    for wrong in ("soon", "1w", "-1h", "9" * 6 + "d", "9" * 7 + "d"):
        assert line("trace", f"--since={wrong}").status == 2, wrong


def test_a_request_in_json_is_what_is_documented(line: CommandLine, trace: Trace) -> None:
    trace.name_clients({"k1": "laptop"})
    put(trace, row(at=1_800_000_000.5))
    (request,) = line("trace", "--json").json["requests"]
    assert request["at"] == "2027-01-15T08:00:00.500Z"
    assert (request["client"], request["client_name"], request["input_tokens"]) == ("k1", "laptop", 11)
    assert f"`{{{', '.join(request)}}}`" in (DOCS / "cli.md").read_text()
    told = re.findall(r"^\| (`.+?`) \| ", (DOCS / "trace.md").read_text(), re.MULTILINE)
    fields = [name for cell in told for name in re.findall(r"`(\w+)`", cell) if not name.startswith("valetkey_")]
    assert fields == list(request)


def test_following_shows_what_comes_until_ctrl_c(line: CommandLine, trace: Trace, home: Path) -> None:
    put(trace, row(at=now(), path="/old"))
    with line.terminal("trace", "-f", "--client", "k1") as terminal:
        terminal.expect("/old")
        put(trace, row(at=now(), path="/other", client="k2"))
        put(trace, row(at=now(), path="/first"), *(row(at=now(), path="/many") for _ in range(2500)))
        put(trace, row(at=now(), path="/last"))
        terminal.expect("/first")
        terminal.expect("/last")
        # Somebody begins the trace anew.
        (home / "trace.db").unlink()
        put(trace, row(at=now(), path="/again"))
        terminal.expect("/again")
        terminal.interrupt()
        assert terminal.end() == 130
    assert terminal.shown.count("/many") == 2500
    assert terminal.shown.count("/first") == terminal.shown.count("/again") == 1
    assert "/other" not in terminal.shown


def test_following_in_json_gives_a_line_each(line: CommandLine, trace: Trace) -> None:
    with line.terminal("trace", "-f", "--json") as terminal:
        terminal.expect("nothing is recorded yet")
        put(trace, row(at=now(), path="/1", model="a\u2028b"), row(at=now(), path="/2"))
        terminal.expect('"/2"')
        terminal.expect("}")
        terminal.interrupt()
        assert terminal.end() == 130
    lines: list[dict[str, Any]] = [json.loads(each) for each in terminal.shown.splitlines() if each.startswith("{")]
    assert [each["path"] for each in lines] == ["/1", "/2"]


def test_a_damaged_file_is_told(line: CommandLine, home: Path) -> None:
    (home / "trace.db").write_bytes(b"no database" * 1000)
    done = line("trace", "--json")
    assert done.status == 1
    assert done.json["error"]["code"] == "trace_unreadable"

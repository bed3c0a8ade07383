"""`trace`: what went through the gateway."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from valetkey.cli.frame import State, command
from valetkey.cli.output import fitted, plain, plain_json
from valetkey.cli.output import since as time_of
from valetkey.clock import written

if TYPE_CHECKING:
    from valetkey.gateway.row import Row
    from valetkey.gateway.trace_file import Recorded, TraceReader

__all__ = ["show", "trace"]

# Of what was asked for: less says nothing.
_SHORTEST = 6
_POLL_SECONDS = 0.25
_AT_ONCE = 1000
# The last column takes what is left of the line: 80 columns hold `/v1/chat/completions`.
_WIDTHS = {"time": 8, "client": 9, "account": 14, "method": 7, "": 3, "took": 5, "tokens": 9}
_WIDTH_OF_DAY = 11


@command("trace", short_help="Show what went through the gateway.")
@click.option("-f", "--follow", is_flag=True, help="Go on with new requests until Ctrl-C.")
@click.option("--client", metavar="KEY", help="Only what this valet key asked for, by its id or name.")
@click.option("--account", metavar="PROVIDER[@ACCOUNT]", help="Only what went to this account.")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), default=50, help="How many (default: 50).")
@click.option("--since", metavar="TIME", help="Only newer ones: 30m, 1h, 2d, or a date and time.")
def trace(
    state: State, *, follow: bool, client: str | None, account: str | None, limit: int, since: str | None
) -> None:
    """Show the newest requests, the newest last: when, by which key and account, what, how it ended, how long it took.

    Nothing in it is secret: no headers, no query, and what is or looks like a credential is taken out.
    """
    show(state, follow=follow, client=client, account=account, limit=limit, since=since)


def show(state: State, *, follow: bool, client: str | None, account: str | None, limit: int, since: str | None) -> None:
    """Show the newest requests of this client and account, oldest first. Raises: UsageError, TraceUnreadable."""
    from valetkey.gateway.trace_file import TraceReader

    reader = TraceReader(state.paths.trace)
    begin = None if since is None else time_of(since, state.clock.now()).timestamp()
    highest = reader.last_id()
    found = reader.newest(limit, client=client, account=account, since=begin)[::-1]
    days = not follow and any(_day(r.row.at) != _today(state) for r in found)
    lines = _Lines(state, days=days, clients=client is None)
    if not follow:
        state.emit({"requests": [_as_dict(r.row, lines.names(reader, [r])) for r in found]})
    if not found:
        what = "nothing is recorded yet" if highest == 0 else "no such request is recorded"
        state.note(f"{what}; the gateway records what goes through it")
    if follow or found:
        lines.head()
    lines.show(reader, found, one_by_one=follow)
    if follow:
        _follow(state, reader, lines, found[-1].id if found else highest, client=client, account=account)


def _follow(
    state: State, reader: TraceReader, lines: _Lines, after: int, *, client: str | None, account: str | None
) -> None:
    while True:
        state.clock.pause(_POLL_SECONDS)
        highest = reader.last_id()
        if highest < after:
            after = 0  # all was deleted, or the file is a new one
        while highest > after:
            found = reader.following(after, limit=_AT_ONCE, client=client, account=account)
            lines.show(reader, found, one_by_one=True)
            # Rows may have come behind `highest`; and where the page is full, there may be more before it.
            after = found[-1].id if len(found) == _AT_ONCE else max(highest, *(r.id for r in found[-1:]), after)


# --- what is shown ---------------------------------------------------------------------------


class _Lines:
    """Writes one line a request, for a person or, following, as JSON."""

    def __init__(self, state: State, *, days: bool, clients: bool) -> None:
        self._state = state
        self._days = days
        self._widths = {**_WIDTHS, "time": _WIDTH_OF_DAY if days else _WIDTHS["time"]}
        if not clients:  # all are of one
            del self._widths["client"]
        self._names: Mapping[str, str] = {}

    def names(self, reader: TraceReader, found: Sequence[Recorded]) -> Mapping[str, str]:
        """Give the clients' names, read anew where there are clients without one."""
        if any(r.row.client not in self._names for r in found):
            self._names = reader.names()
        return self._names

    def head(self) -> None:
        """Write the headings."""
        cells = [fitted(name, width) for name, width in self._widths.items()]
        self._state.say(" ".join([*cells, "request"]).rstrip(), bold=True)

    def show(self, reader: TraceReader, found: Sequence[Recorded], *, one_by_one: bool) -> None:
        """Write these. With `--json` only where they are written one by one."""
        names = self.names(reader, found)
        for recorded in found:
            if not self._state.json:
                self._state.say(self._line(recorded.row, names), fg=_color(recorded.row))
            elif one_by_one:
                click.echo(plain_json(json.dumps(_as_dict(recorded.row, names), ensure_ascii=False)))

    def _line(self, row: Row, names: Mapping[str, str]) -> str:
        at = datetime.fromtimestamp(row.at).astimezone()
        texts = {
            "time": at.strftime("%m-%d %H:%M" if self._days else "%H:%M:%S"),
            "client": names.get(row.client) or row.client or "-",
            "account": row.account or "-",
            "method": row.method,
            "": str(row.status or "-"),
            "took": _took(row.duration_ms),
            "tokens": _tokens(row),
        }
        begin = " ".join(fitted(plain(texts[name]), width) for name, width in self._widths.items())
        code, request = "" if row.outcome == "ok" else f"{row.outcome}: ", row.host + row.path
        width = self._state.width
        if width is not None:
            room = max(12, width - len(begin) - 1)
            request = _shortened(request, max(_SHORTEST, room - len(code)))
            # The code goes first, whatever is left of the rest.
            return f"{begin} {fitted(code + request, room)}".rstrip()
        return f"{begin} {code}{request}"


def _shortened(text: str, width: int) -> str:
    # The end of a path tells more than the host.
    return text if len(text) <= width else "…" + text[1 - width :]


def _color(row: Row) -> str | None:
    from valetkey.gateway.row import is_failure, is_refusal

    return "yellow" if is_refusal(row) else "red" if is_failure(row) else None


def _took(milliseconds: float) -> str:
    if milliseconds < 1000:
        return f"{milliseconds:.0f}ms"
    return f"{milliseconds / 1000:.1f}s" if milliseconds < 100_000 else f"{milliseconds / 60_000:.0f}m"


def _tokens(row: Row) -> str:
    if row.input_tokens is None and row.output_tokens is None:
        return "-"
    return f"{_short(row.input_tokens or 0)}+{_short(row.output_tokens or 0)}"


def _short(count: int) -> str:
    for size, unit in ((10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.1f}{unit}" if count < 10 * size else f"{count // size}{unit}"
    return str(count)


def _day(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d")


def _today(state: State) -> str:
    return _day(state.clock.now().timestamp())


def _as_dict(row: Row, names: Mapping[str, str]) -> dict[str, Any]:
    return {
        "at": written(datetime.fromtimestamp(row.at, UTC), timespec="milliseconds"),
        "client": row.client,
        "client_name": names.get(row.client),
        **{name: value for name, value in row._asdict().items() if name not in ("at", "client")},
    }

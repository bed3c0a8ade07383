"""What only Valetkey's gateway has to do: interception, revocation and rotation, each under load."""

from __future__ import annotations

import bisect
import json
import statistics
import time
from dataclasses import dataclass

from bench.client import Address, Connection, Crew, Note, closed_loop, percentile
from bench.running import Process
from bench.valetkey import Rotation, Valetkey

__all__ = ["intercepted", "new_connections", "revocation", "rotation"]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Requests on kept connections."""

    rate: float
    cpu_us: float
    p50: float
    p99: float
    errors: int


def kept(crew: Crew, address: Address, process: Process, *, connections: int, seconds: float) -> Kept:
    before = process.cpu_seconds()
    notes = crew.run(closed_loop, address, connections=connections, seconds=seconds)
    taken = process.cpu_seconds() - before
    good = [(done - sent) * 1000 for _, sent, done, status in notes if status == 200]
    return Kept(
        rate=len(good) / seconds,
        cpu_us=taken * 1e6 / max(1, len(notes)),
        p50=percentile(good, 50),
        p99=percentile(good, 99),
        errors=len(notes) - len(good),
    )


def intercepted(crew: Crew, gateway: Valetkey, *, connections: int, rounds: int, seconds: float) -> list[list[Kept]]:
    """Measure both ways in by turns, with the same client: [base URL, intercepted], each with its rounds."""
    assert gateway.process is not None
    ways = (gateway.fast, gateway.tunnelled)
    taken: list[list[Kept]] = [[], []]
    for round_ in range(rounds + 1):
        for way, address in enumerate(ways):
            length = seconds if round_ else min(1, seconds)
            figures = kept(crew, address, gateway.process, connections=connections, seconds=length)
            if round_:  # the first one warms up
                taken[way].append(figures)
    return taken


# --- new connections --------------------------------------------------------------------------


def new_connections(address: Address, *, count: int) -> tuple[list[float], list[float]]:
    """Open connections one after the other: ms until each can take a request, and until its first answer."""
    opened, answered = [], []
    for _ in range(count):
        began = time.perf_counter()
        connection = Connection(address)
        opened.append((time.perf_counter() - began) * 1000)
        answer = connection.ask()
        answered.append((time.perf_counter() - began) * 1000)
        connection.close()
        if answer.status != 200:
            raise SystemExit(f"a new connection was answered with {answer.status} {answer.body[:200]!r}")
    return opened, answered


# --- revocation -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Revocation:
    """Seconds after `revoke` returned: when the last request that was let through had been sent, and answered."""

    accepted: int
    refused: int
    other: dict[int, int]
    last_sent: float
    last_answered: float


def revocation(crew: Crew, gateway: Valetkey, *, connections: int, seconds: float, name: str) -> Revocation:
    """Revoke a key in the middle of the load that comes with it."""
    client = gateway.with_key(gateway.new_key(name))
    load = crew.begin(closed_loop, client.fast, connections=connections, seconds=seconds)
    time.sleep(seconds / 3)
    gateway.revoke(name)
    returned = time.monotonic()
    notes = load.result()
    good = [note for note in notes if note[3] == 200]
    counts: dict[int, int] = {}
    for note in notes:
        counts[note[3]] = counts.get(note[3], 0) + 1
    if not good:
        raise SystemExit(f"no request was let through before the key was revoked: {counts}")
    return Revocation(
        accepted=counts.pop(200),
        refused=counts.pop(401, 0),
        other=counts,
        last_sent=max(sent for _, sent, _, _ in good) - returned,
        last_answered=max(done for _, _, done, _ in good) - returned,
    )


# --- rotation ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Rotated:
    """`stale`: requests that were sent after a credential was saved and got an older one.

    `latest_use` is in ms: how long after its successor was saved an old credential last came to the upstream, with a
    request that was under way by then.
    """

    requests: int
    failed: dict[int, int]
    saved: int
    unused: int
    stale: int
    latest_use: float
    save_ms: float


def rotation(crew: Crew, gateway: Valetkey, *, connections: int, seconds: float, every: float) -> Rotated:
    """Save a new credential at each tick while requests are made, and hold their notes against the upstream's."""
    assert gateway.slow is not None
    upstream = gateway.upstreams.direct().slow
    assert upstream is not None
    _notes_of(upstream)
    credentials = Rotation(gateway.home, gateway.upstreams.key)
    times: list[float] = []  # the time at which credential number 1, 2, … was saved
    took = []
    load = crew.begin(closed_loop, gateway.slow, connections=connections, seconds=seconds, numbered=True)
    begin = time.monotonic() + 0.3
    for tick in range(max(1, round((seconds - 0.6) / every))):
        time.sleep(max(0, begin + tick * every - time.monotonic()))
        began = time.monotonic()
        credentials.save_next()
        times.append(time.monotonic())
        took.append((times[-1] - began) * 1000)
    notes = load.result()
    credentials.close()
    return _compared(notes, _notes_of(upstream), times, statistics.median(took))


def _notes_of(upstream: Address) -> list[tuple[int, int, float]]:
    """Take the notes of the upstream: (number of the request, number of the credential, when it came)."""
    connection = Connection(upstream)
    answer = connection.ask("GET", "/bench/notes")
    connection.close()
    return [tuple(note) for note in json.loads(answer.body)]


def _compared(notes: list[Note], seen: list[tuple[int, int, float]], times: list[float], save_ms: float) -> Rotated:
    sent_at = {number: sent for number, sent, _, _ in notes}
    failed: dict[int, int] = {}
    for note in notes:
        if note[3] != 200:
            failed[note[3]] = failed.get(note[3], 0) + 1
    stale, latest_use = 0, 0.0
    for number, credential, came in seen:
        if number in sent_at:  # those that were under way at the end are not in the client's notes
            stale += credential < bisect.bisect_right(times, sent_at[number])
        if credential < len(times):
            latest_use = max(latest_use, (came - times[credential]) * 1000)
    return Rotated(
        requests=len(notes),
        failed=failed,
        saved=len(times),
        unused=len(times) - len({credential for _, credential, _ in seen if credential}),
        stale=stale,
        latest_use=latest_use,
        save_ms=save_ms,
    )

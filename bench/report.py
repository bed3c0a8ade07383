"""The tables of the gateway's benchmark, as docs/performance.md has them, each with its goal and whether it was met."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

from bench.client import Load, percentile
from bench.streams import Latencies, Waves
from bench.trials import Kept, Revocation, Rotated

OURS = "Valetkey"
# The least ratio of requests a second that we want to each of the others.
GOALS = {"nginx": 0.5, "Envoy": 1.0, "mitmproxy": 20, "LiteLLM": 100}

# Percent of the proxy's core that others may take in a round: what the kernel and idle proxies need.
TOLERATED = 10


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n**{title}**\n")
    print(f"| {' | '.join(columns)} |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print(f"| {' | '.join(row)} |")


def goal(text: str, met: bool, reached: str) -> None:
    print(f"\nGoal: {text}. {'Met' if met else 'NOT met'}: {reached}.", flush=True)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Give the median and the range."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


# --- load -------------------------------------------------------------------------------------


def load(taken: Mapping[str, Sequence[Load]], *, connections: int, seconds: float) -> None:
    rows = []
    for name, rounds in taken.items():
        errors = sum(one.errors for one in rounds)
        rows.append(
            [
                name,
                f"{median([one.rate for one in rounds]):.0f}",
                f"{min(one.rate for one in rounds):.0f}-{max(one.rate for one in rounds):.0f}",
                f"{median([one.cpu_us for one in rounds]):.1f}" if rounds[0].cpu_us else "",
                f"{median([one.p50 for one in rounds]):.2f}",
                f"{median([one.p99 for one in rounds]):.2f}",
                f"{median([one.proxy_busy for one in rounds]):.0f} / {median([one.load_busy for one in rounds]):.0f}",
                f"**{errors}**" if errors else "0",
            ]
        )
    count = len(next(iter(taken.values())))
    table(
        f"Requests a second, {connections} connections (medians of {count} rounds of {seconds:g} s)",
        ["through", "req/s", "range", "CPU µs a request", "p50 ms", "p99 ms", "busy %, proxy / load", "errors"],
        rows,
    )
    for name, rounds in taken.items():
        if errors := sum(one.errors for one in rounds):
            print(f"\n{name} had {errors} errors in {sum(one.requests for one in rounds)} requests.")
    foreign = max((one.foreign for rounds in taken.values() for one in rounds if one.cpu_us), default=0)
    if foreign > TOLERATED:
        print(f"\nNot to be quoted: others took up to {foreign:.0f} % of the proxy's core.")


def ratios(taken: Mapping[str, Sequence[Load]], *, connections: int) -> None:
    """Print how we stand to each of the others, round by round; without us, how they stand to nginx."""
    ours = OURS if OURS in taken else next(name for name in taken if name != "direct")
    rows, missed = [], []
    for name, rounds in taken.items():
        if name in (ours, "direct"):
            continue
        # A slow one may not have answered at all in a short round.
        pairs = [
            (one, other) for one, other in zip(taken[ours], rounds, strict=True) if one.requests and other.requests
        ]
        if not pairs:
            rows.append([name, "no answer", "", ""])
            missed.append(f"{name} without an answer")
            continue
        rates = [one.rate / other.rate for one, other in pairs]
        cpu = [other.cpu_us / max(one.cpu_us, 1e-9) for one, other in pairs]
        wanted = GOALS.get(name)
        rows.append([name, spread(rates), spread(cpu), f"{wanted:g}" if wanted and ours == OURS else ""])
        if wanted and median(rates) < wanted:
            missed.append(f"{name} {median(rates):.2f}")
    if not rows:
        return
    columns = ["against", "req/s, ratio (range)", "requests per CPU second, ratio (range)", "goal"]
    table(f"{ours} against the others, {connections} connections", columns, rows)
    if ours == OURS:
        goal("the ratios in the last column", not missed, ", ".join(missed) or "all of them")
        if "direct" in taken and connections == 16:
            added = [
                median([one.p50 - other.p50 for one, other in zip(taken[ours], taken["direct"], strict=True)]),
                median([one.p99 - other.p99 for one, other in zip(taken[ours], taken["direct"], strict=True)]),
            ]
            reached = f"p50 {added[0]:.2f} ms, p99 {added[1]:.2f} ms"
            goal("at 16 connections under full load p50 +0.5 ms, p99 +5 ms", added[0] <= 0.5 and added[1] <= 5, reached)


def latency(taken: Mapping[str, list[float]]) -> None:
    base = taken["direct"]
    rows = [
        [
            name,
            f"{percentile(values, 50):.2f}",
            f"{percentile(values, 99):.2f}",
            f"{percentile(values, 50) - percentile(base, 50):+.2f}" if name != "direct" else "",
            f"{percentile(values, 99) - percentile(base, 99):+.2f}" if name != "direct" else "",
        ]
        for name, values in taken.items()
    ]
    title = "Latency at 100 requests a second over one connection, ms"
    table(title, ["through", "p50", "p99", "p50 added", "p99 added"], rows)


# --- streams and bodies -----------------------------------------------------------------------


def streams(taken: Mapping[str, Latencies]) -> None:
    rows = [
        [
            name,
            f"{percentile(one.first, 50):.2f}",
            f"{percentile(one.first, 90):.2f}",
            f"{percentile(one.first, 50) - percentile(taken['direct'].first, 50):+.2f}" if name != "direct" else "",
            f"{percentile(one.later, 50):.2f}",
            f"{percentile(one.later, 99):.2f}",
        ]
        for name, one in taken.items()
    ]
    columns = ["through", "first byte p50", "p90", "added", "later event p50", "p99"]
    table("Server-sent events, ms", columns, rows)
    if OURS in taken:
        added = percentile(taken[OURS].first, 50) - percentile(taken["direct"].first, 50)
        goal("the first byte of a stream at most 2 ms later", added <= 2, f"{added:.2f} ms")


def idle(taken: Mapping[str, Waves], *, streams: int) -> None:
    rows = [
        [
            name,
            f"{one.before:.0f}",
            f"{one.open[0]:.0f}",
            f"{max(one.open):.0f}",
            f"{one.open[-1]:.0f}",
            f"{one.after:.0f}",
            f"{(one.open[0] - one.before) * 1000 / streams:.0f}",
            f"{one.seconds_to_open:.1f}",
        ]
        for name, one in taken.items()
    ]
    waves = max((len(one.open) for one in taken.values()), default=0)
    columns = ["through", "before", "first wave", "highest", "last wave", "all gone", "kB a stream", "s to open"]
    table(f"{streams} idle streams, {waves} waves, resident MB", columns, rows)
    for name, one in taken.items():
        if name.startswith(OURS):
            level = one.open[-1] <= one.open[0] * 1.1
            reached = f"{name} {max(one.open):.0f} MB, {one.open[-1] / one.open[0]:.2f} x its first wave at the last"
            goal("at most 150 MB, and level over the waves", max(one.open) <= 150 and level, reached)


def big_bodies(taken: Mapping[str, Sequence[tuple[float, float]]], *, size: int) -> None:
    rows = []
    shares: dict[str, tuple[list[float], list[float]]] = {}
    for name, rounds in taken.items():
        shares[name] = (
            [one[0] / other[0] for one, other in zip(rounds, taken["direct"], strict=True)],
            [one[1] / other[1] for one, other in zip(rounds, taken["direct"], strict=True)],
        )
        up, down = (spread(share) if name != "direct" else "" for share in shares[name])
        row = [name, f"{median([one[0] for one in rounds]):.0f}", up, f"{median([one[1] for one in rounds]):.0f}", down]
        rows.append(row)
    columns = ["through", "up MB/s", "x direct", "down MB/s", "x direct"]
    table(f"{size / 1e6:.0f} MB up and down", columns, rows)
    if OURS in shares:
        up_, down_ = (median(share) for share in shares[OURS])
        goal("at least 0.5 x direct both ways", min(up_, down_) >= 0.5, f"{up_:.2f} up, {down_:.2f} down")


# --- what only Valetkey has to do -------------------------------------------------------------


def intercepted(taken: Sequence[Sequence[Kept]], *, connections: int) -> None:
    rows = []
    for name, rounds in zip(("base URL", "intercepted"), taken, strict=True):
        figures = [[one.rate for one in rounds], [one.cpu_us for one in rounds], [one.p99 for one in rounds]]
        rows.append(
            [
                name,
                spread(figures[0], 0),
                spread(figures[1], 1),
                f"{median(figures[2]):.2f}",
                str(sum(one.errors for one in rounds)),
            ]
        )
    title = f"Kept connections, {connections} of them, asked by a client in Python"
    table(title, ["way in", "req/s (range)", "CPU µs a request (range)", "p99 ms", "errors"], rows)
    rates = [inside.rate / plain.rate for plain, inside in zip(*taken, strict=True)]
    cpu = [plain.cpu_us / max(inside.cpu_us, 1e-9) for plain, inside in zip(*taken, strict=True)]
    reached = f"{spread(rates)} in requests a second, {spread(cpu)} by processor time"
    goal("intercepted at least 0.8 x base URL", median(rates) >= 0.8, reached)


def new_connections(taken: Mapping[str, tuple[list[float], list[float]]]) -> None:
    rows = []
    for name, (opened, answered) in taken.items():
        figures = [percentile(values, at) for values in (opened, answered) for at in (50, 99)]
        rows.append([name, *(f"{figure:.2f}" for figure in figures)])
    columns = ["way in", "open p50", "p99", "first answer p50", "p99"]
    table(f"New connections, {len(next(iter(taken.values()))[0])} in turn, ms", columns, rows)
    p50, p99 = (percentile(taken["intercepted"][0], at) for at in (50, 99))
    goal("a new intercepted connection within 10 ms", p99 <= 10, f"p50 {p50:.2f} ms, p99 {p99:.2f} ms")


def revocation(trials: Sequence[Revocation]) -> None:
    rows = [
        [
            str(one.accepted),
            str(one.refused),
            ", ".join(f"{status}: {count}" for status, count in one.other.items()) or "0",
            f"{one.last_sent * 1000:+.0f}",
            f"{one.last_answered * 1000:+.0f}",
        ]
        for one in trials
    ]
    columns = ["accepted", "refused", "other", "last accepted one sent", "and answered"]
    table("A key revoked under the load of 64 connections, ms after `revoke` returned", columns, rows)
    worst = max(one.last_answered for one in trials)
    goal("the last accepted request at most 1 s after `revoke` returned", worst <= 1, f"{worst * 1000:+.0f} ms")


def rotation(one: Rotated, *, seconds: float) -> None:
    failed = ", ".join(f"{status}: {count}" for status, count in one.failed.items()) or "0"
    columns = ["requests", "failed", "saved", "of them never used", "stale", "last use of an old one, ms", "save, ms"]
    row = [str(one.requests), failed, str(one.saved), str(one.unused), str(one.stale)]
    table(
        f"A new credential every 100 ms for {seconds:g} s, 16 connections",
        columns,
        [[*row, f"{one.latest_use:.1f}", f"{one.save_ms:.2f}"]],
    )
    good = not one.failed and not one.stale
    reached = f"{failed} failed, {one.stale} stale"
    goal("no failed request, no old credential in a request made after its successor was saved", good, reached)


# --- profile ----------------------------------------------------------------------------------


# What waits takes no time, and py-spy cannot always tell. What nearly every sample has says nothing.
_WAITING = ("wait (threading.py", "get (queue.py", "_worker (concurrent")
_EVERYWHERE = 0.85


def profile(name: str, figures: Load, stacks: str) -> None:
    """Print where the samples fell: by the function that was running, and by functions with all that they call."""
    own: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    for line in stacks.splitlines():
        frames, _, count = line.rpartition(" ")
        names = frames.split(";")
        python = next((frame for frame in reversed(names) if ".py:" in frame), "")
        if any(waiting in python for waiting in _WAITING) or names[-1].startswith("epoll_pwait"):
            continue
        own[names[-1]] += int(count)
        for frame in set(names):
            whole[frame] += int(count)
    total = max(1, own.total())
    print(f"\n{name}: {figures.rate:.0f} req/s, {figures.cpu_us:.1f} µs of CPU a request, {total} samples")
    for title, counted in (("by itself", own), ("with what it calls", whole)):
        shares = [(frame, count / total) for frame, count in counted.most_common(60)]
        rows = [[f"{100 * share:.1f} %", f"`{frame}`"] for frame, share in shares if share < _EVERYWHERE]
        table(f"Where the time goes, {title}", ["share", "function"], rows[:30])

"""Counts requests for Prometheus, out of the trace's rows: no request waits for a counter."""

from __future__ import annotations

import re
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from valetkey.gateway.row import Row, is_refusal

__all__ = ["Metrics"]

# RFC 9110 section 9, and PATCH (RFC 5789). A client may send any word; a label may not become one.
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE"))
# Codes of errors are such words; nothing that is secret is.
_WORD = re.compile(r"[a-z][a-z0-9_-]{0,39}")
# From a refusal of an upstream to a long stream.
_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_BOUNDS_MS = tuple(bound * 1000 for bound in _BOUNDS)


class Metrics:
    """An observer of the trace; `renewal` is called by whoever renews. For any thread.

    No label holds a token, an account's name, a client, a host or a path.
    """

    def __init__(self, *, providers: Container[str], open_requests: Callable[[], int] = lambda: 0) -> None:
        self.dropped: Callable[[], int] = lambda: 0  # the trace's; it is made after what observes it
        self.open_requests = open_requests
        self._providers = providers
        self._guard = threading.Lock()
        self._requests: Counter[tuple[str, ...]] = Counter()
        self._refusals: Counter[tuple[str, ...]] = Counter()
        self._injections: Counter[tuple[str, ...]] = Counter()
        self._tokens: Counter[tuple[str, ...]] = Counter()
        self._renewals: Counter[tuple[str, ...]] = Counter()
        self._seconds: dict[str, _Times] = {}
        self._first_byte: dict[str, _Times] = {}
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Collected(self._collect))

    # --- what happens ----------------------------------------------------------------------------

    def __call__(self, rows: Sequence[Row]) -> None:
        """Count a batch of the trace."""
        with self._guard:
            # Most rows of a batch are alike.
            alike: dict[tuple[object, ...], list[Row]] = {}
            for row in rows:
                key = row[2], row[3], row[6], row[7], row[8], row[11] is None
                if key in alike:
                    alike[key].append(row)
                else:
                    alike[key] = [row]
            for some in alike.values():
                self._count(some)

    def renewal(self, provider: str, outcome: str) -> None:
        """Count a renewal: outcome "ok", or the code of its error."""
        with self._guard:
            self._renewals[self._provider(provider), _word(outcome)] += 1

    def _count(self, rows: Sequence[Row]) -> None:
        """Count rows of one account, method, status, outcome and way. All or none of them had a first byte."""
        row, number = rows[0], len(rows)
        provider = self._provider(row.account.partition("@")[0])
        outcome = "ok" if row.outcome == "ok" else _word(row.outcome)
        self._requests[provider, row.method if row.method in _METHODS else "other", outcome] += number
        if is_refusal(row):
            self._refusals[provider, outcome] += number
            return
        answered = row.first_byte_ms is not None
        # Without an answer nobody knows how far the request came.
        if row.account and row.way != "tunnel" and (row.outcome == "ok" or answered):
            self._injections[provider,] += number
        for kind, counts in (
            ("input", [row.input_tokens for row in rows]),
            ("output", [row.output_tokens for row in rows]),
        ):
            if total := sum(filter(None, counts)):
                self._tokens[provider, kind] += total
        _times(self._seconds, provider).add([row.duration_ms for row in rows])
        if answered:
            _times(self._first_byte, provider).add([row.first_byte_ms or 0.0 for row in rows])

    def _provider(self, name: str) -> str:
        return name if name and name in self._providers else "none"

    # --- what is told ----------------------------------------------------------------------------

    def text(self) -> bytes:
        """Give all of them in Prometheus' text format."""
        return generate_latest(self._registry)

    def _collect(self) -> Iterator[Metric]:
        with self._guard:
            found = [
                _counter("requests", "Requests that ended.", ("provider", "method", "outcome"), self._requests),
                _counter("refusals", "Requests that the gateway refused.", ("provider", "code"), self._refusals),
                _counter("injections", "Requests sent with a credential.", ("provider",), self._injections),
                _counter("tokens", "Tokens, as the providers count them.", ("provider", "kind"), self._tokens),
                _counter("renewals", "Renewals of credentials.", ("provider", "outcome"), self._renewals),
                _histogram("request_seconds", "From a request's head to the end of its answer.", self._seconds),
                _histogram("first_byte_seconds", "From a request's head to its answer's.", self._first_byte),
            ]
        yield from found
        dropped: Counter[tuple[str, ...]] = Counter({(): self.dropped()})
        yield _counter("trace_dropped", "Rows that the trace could not keep.", (), dropped)
        yield GaugeMetricFamily("valetkey_open_requests", "Requests under way.", value=self.open_requests())


class _Collected(Collector):
    # The library wants an object of its own; a method would be known to all who have the metrics.
    def __init__(self, collect: Callable[[], Iterator[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterator[Metric]:
        return self._collect()


class _Times:
    """How many took how long."""

    def __init__(self) -> None:
        self.counts = [0] * (len(_BOUNDS) + 1)
        self.sum = 0.0

    def add(self, milliseconds: list[float]) -> None:
        milliseconds.sort()
        below = 0
        for number, bound in enumerate(_BOUNDS_MS):
            up_to = bisect_right(milliseconds, bound)
            self.counts[number] += up_to - below
            below = up_to
        self.counts[-1] += len(milliseconds) - below
        self.sum += sum(milliseconds) / 1000


def _times(of: dict[str, _Times], provider: str) -> _Times:
    found = of.get(provider)
    if found is None:
        found = of[provider] = _Times()
    return found


def _word(text: str) -> str:
    return text if _WORD.fullmatch(text) else "other"


def _counter(name: str, says: str, labels: tuple[str, ...], counts: Counter[tuple[str, ...]]) -> Metric:
    family = CounterMetricFamily(f"valetkey_{name}", says, labels=labels)
    for values, count in counts.items():
        family.add_metric(values, count)
    return family


def _histogram(name: str, says: str, times: dict[str, _Times]) -> Metric:
    family = HistogramMetricFamily(f"valetkey_{name}", says, labels=("provider",))
    for provider, found in times.items():
        buckets, total = [], 0
        for bound, count in zip((*map(str, _BOUNDS), "+Inf"), found.counts, strict=True):
            total += count
            buckets.append((bound, total))
        family.add_metric((provider,), buckets, found.sum)
    return family

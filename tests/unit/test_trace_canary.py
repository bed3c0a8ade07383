"""A canary in every field of requests, in every form, comes out nowhere: trace, its -wal, metrics, spans, log."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

from tests.support.collector import Collector
from tests.support.rows import row
from valetkey import log
from valetkey.credential import Secret
from valetkey.gateway.metrics import Metrics
from valetkey.gateway.row import Row
from valetkey.gateway.telemetry import telemetry
from valetkey.gateway.trace import Trace, TraceReader
from valetkey.testing.clock import FakeClock

# With what URL-encoding, JSON and base64 change; and one that only looks like a key, which nobody has made known.
KNOWN = 'canary/+7"é ' * 4 + "end"
FOREIGN = "vk_" + "canary" * 8
TEXTS = ("client", "account", "method", "host", "path", "outcome", "way", "model")


def forms(secret: str) -> list[str]:
    basic = base64.b64encode(f"user:{secret}".encode()).decode()
    return [
        secret,
        quote(secret),
        quote(secret, safe="").lower(),
        quote_plus(secret),
        quote(quote(secret, safe=""), safe=""),
        "".join(f"%{byte:02X}" for byte in secret.encode()),
        json.dumps(secret)[1:-1],
        base64.b64encode(secret.encode()).decode(),
        base64.urlsafe_b64encode(secret.encode()).decode().rstrip("="),
        f"Basic {basic}",
    ]


def rows() -> Iterator[Row]:
    for text in [*forms(KNOWN), *(form for form in forms(FOREIGN) if "canary" in form)]:
        for field in TEXTS:
            yield row(**{field: text})
            yield row(**{field: f"/v1/{text}/x"})
        yield row(path=f"/v1/chat?key={text}#{text}")
    for text in (form for form in forms(KNOWN) if "%63" not in form and "%25" not in form and "%c3" not in form):
        yield row(request_body=f'{{"a": "{text}"}}', response_body=text.encode())
        for cut in range(6, len(text)):
            yield row(request_body=f'{{"a": "{text[:cut]}', response_body=text[:cut].encode())


def leaks(data: bytes) -> list[str]:
    found = [form for secret in (KNOWN, FOREIGN) for form in forms(secret)]
    # The edges of base64 hold bits of their neighbours: its middle is looked for.
    pieces = [form[8:24] for form in found] + ["canary/", "canarycanary", "Y2FuYXJ5"]
    return [piece for piece in pieces if piece.encode() in data]


def test_the_search_finds_what_it_looks_for() -> None:
    for secret in (KNOWN, FOREIGN):
        assert all(leaks(form.encode()) for form in forms(secret))


def test_no_canary_is_kept_or_told(home: Path, clock: FakeClock) -> None:
    path, said = home / "trace.db", io.StringIO()
    take_back = log.set_up(level="debug", stream=said)
    try:
        Secret(KNOWN)
        metrics = Metrics(providers={"acme"})
        with Collector() as collector:
            exporter = telemetry(endpoint=collector.url, environ={})
            assert exporter is not None
            trace = Trace(path, clock, [metrics, exporter])
            trace.name_clients({"k1": KNOWN})
            count = 0
            for each in rows():
                trace.add(each)
                count += 1
                if count % 1000 == 0:
                    trace.flush()
            trace.flush()
            metrics.renewal(KNOWN, KNOWN)
            metrics.renewal("acme", FOREIGN)
            metrics.renewal("acme", quote(KNOWN))
            files = {file.name: file.read_bytes() for file in home.glob("trace.db*")}
            trace.close()
            assert exporter.close()
    finally:
        take_back()
    assert trace.dropped == 0
    assert TraceReader(path).last_id() == count
    assert "trace.db-wal" in files
    assert {name: leaks(data) for name, data in files.items() if leaks(data)} == {}
    assert leaks(path.read_bytes()) == []
    assert leaks(metrics.text()) == []
    assert len(collector.received) > 100_000
    assert leaks(collector.received) == []
    assert leaks(said.getvalue().encode()) == []

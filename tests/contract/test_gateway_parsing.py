"""What the gateway takes as a request: every probe of the table, raw, by each way in, whole and byte by byte."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import pytest

from tests.support.gateway import Raw
from tests.support.probes import PROBES, Probe
from tests.support.rig import Faults, Rig, Way, check_clean, faults, rig
from tests.support.upstream import Whole, answer, ordinary

# More than this byte by byte says no more, and takes long.
_MAX_BYTEWISE = 4096


def told(request: Whole) -> bytes:
    """Answer with the path, so that an answer that belongs to another request is seen."""
    return answer(json.dumps({"path": request.target}).encode())


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("rig"), secure=ordinary(told), plain=ordinary(told)) as running:
        yield running


@pytest.fixture
def silent() -> Iterator[Faults]:
    with faults() as handler:
        yield handler


def pieces(raw: bytes, *, bytewise: bool) -> list[bytes]:
    if not bytewise:
        return [raw]
    if len(raw) > _MAX_BYTEWISE:
        return [raw[at : at + 10_000] for at in range(0, len(raw), 10_000)]
    return [raw[at : at + 1] for at in range(len(raw))]


def send(client: Raw, parts: list[bytes]) -> None:
    """Send all of it; the gateway may have enough of it before."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        client.send(*parts)


@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "byte by byte"])
@pytest.mark.parametrize(
    ("probe", "way"), [pytest.param(p, way, id=f"{p.name}-{way}") for p in PROBES for way in p.ways]
)
def test_a_probe_is_refused_or_becomes_exactly_one_request(
    engine: Rig, silent: Faults, probe: Probe, way: Way, bytewise: bool
) -> None:
    upstream = engine.upstream(way)
    before = len(upstream.requests)
    garbage = len(upstream.garbage)
    with engine.connect(way) as client:
        send(client, pieces(engine.fill(probe.raw, way), bytewise=bytewise))
        last: dict[str, str] = {}
        paths = [path for _, path, _ in probe.seen]
        for status in probe.statuses:
            got, last, body = client.answer()
            assert got == status or (got, status) == (505, 400), body
            if got == 200:
                assert json.loads(body)["path"] == paths.pop(0)
            else:
                assert json.loads(body)["error"]["message"]
        if probe.open:
            assert "connection" not in last
            got, _, body = client.send(engine.get("/after", way)).answer()
            assert (got, json.loads(body)["path"]) == (200, "/after")
        else:
            assert last["connection"] == "close"
            if way != "intercepted":  # inside TLS the end comes when the client has gone, or a moment later
                assert client.closed()
    engine.barrier(way)
    seen = upstream.requests[before:]
    for request in seen:
        check_clean(request, engine.host(way))
    after = [("GET", "/after", b"")] if probe.open else []
    assert [(r.method, r.target, r.body) for r in seen] == [*probe.seen, *after, ("GET", "/barrier", b"")]
    assert upstream.garbage[garbage:] == []

"""Requests for access: a run that was refused asks a person, who allows it once, for the run, or not at all."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import KEY, RunningGateway, running_gateway
from tests.support.rig import faults
from tests.support.upstream import Upstream
from tests.unit.test_gateway_runs import declared
from valetkey.audit import reader
from valetkey.audit.recorder import Audit
from valetkey.clock import SystemClock
from valetkey.config import Paths
from valetkey.errors import AuditUnwritable, NotLoggedIn, RecordDamaged, UnknownApproval, UsageError
from valetkey.gateway import access_requests
from valetkey.gateway.access_requests import MOST, MOST_PENDING, Scope
from valetkey.gateway.approvals import Pending
from valetkey.gateway.runs import BegunRun
from valetkey.provider import Provider
from valetkey.store import Document
from valetkey.testing.clock import SteppedClock

PATH = "/valetkey/access"
POLICY = 'default = "deny"\n[[rule]]\nreason = "models only"\nallow = "GET {host}/models"\n'


@dataclass
class Scene:
    """A run under a policy, its provider, another one that it was not granted, and who decides."""

    running: RunningGateway
    plain: Upstream
    other: Upstream
    run: BegunRun
    paths: Paths

    def send(
        self, target: str, *, method: str = "GET", body: object = None, run: BegunRun | None = None, headers: str = ""
    ) -> tuple[int, Any]:
        """Send a request by a run's socket; give the status and the JSON or text of the answer."""
        content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        host = target.split("/")[2] if "://" in target else target if method == "CONNECT" else "localhost"
        head = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(content)}\r\n{headers}\r\n"
        with self.running.run_raw(run or self.run) as client:
            status, _, answer = client.send(head.encode() + content).answer()
        return status, json.loads(answer) if answer.startswith(b"{") else answer.decode()

    def ask(self, *, run: BegunRun | None = None, **body: str) -> tuple[int, Any]:
        return self.send(PATH, method="POST", body=body, run=run)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.plain.port}{path}"

    def pending(self) -> list[Pending]:
        found: list[Pending] = self.running.do(self.running.gateway.access.pending)
        return found

    def settle(self, id: str, *, approved: bool = True, scope: Scope = "run") -> None:
        self.running.do(lambda: self.running.gateway.access.settle(id, approved, "ada", scope))

    def entries(self, kind: str) -> list[dict[str, Any]]:
        return reader.newest(self.paths.audit, 100, wanted=lambda entry: entry["kind"] == kind)


def shut(provider: Provider) -> Provider:
    """Let it keep a path off limits."""
    return replace(provider, api=replace(provider.api, off_limits=("* /keys/**",)))


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    home = tmp_path / "h"
    home.mkdir(0o700)
    paths = Paths(home=home)
    audit = Audit(paths, SystemClock())
    with (
        faults(),
        Upstream() as plain,
        Upstream() as other,
        running_gateway(shut(declared(plain.url)), declared(other.url, "other"), home=home, audit=audit) as running,
    ):
        policy = POLICY.format(host=f"127.0.0.1:{plain.port}")
        yield Scene(running, plain, other, running.begin_run("acme", policy=policy), paths)


def test_a_refusal_says_how_to_ask_and_what_it_says_can_be_sent_as_it_is(scene: Scene) -> None:
    status, refused = scene.send("/acme/files")
    assert (status, refused["error"]["code"]) == (403, "denied")
    ask = refused["error"]["ask"]
    assert ask["command"] in refused["error"]["hint"]
    program, silent, url, data, body = shlex.split(ask["command"])
    assert (program, silent, url, data) == ("curl", "-sS", f"http://127.0.0.1:3128{PATH}", "-d")
    assert json.loads(body) == ask["body"]
    status, asked = scene.send(PATH, method="POST", body=ask["body"])
    assert (status, asked["state"]) == (202, "pending")
    (pending,) = scene.pending()
    assert (pending.kind, pending.client, pending.url) == ("access", "run:run-1", scene.url("/files"))
    assert pending.allows == f"GET 127.0.0.1:{scene.plain.port}/files"


def test_what_is_approved_for_the_run_counts_at_once_for_that_request_and_that_run_alone(scene: Scene) -> None:
    _, asked = scene.ask(method="POST", url=scene.url("/files"), reason="to upload")
    other = scene.running.begin_run("acme", id="run-2", policy=POLICY.format(host=scene.plain.url[7:]))
    scene.settle(asked["id"])
    for _ in range(2):
        assert scene.send("/acme/files", method="POST")[0] == 200
    assert scene.send("/acme/files")[0] == 403
    assert scene.send("/acme/files/x", method="POST")[0] == 403
    assert scene.send("/acme/files", method="POST", run=other)[0] == 403
    assert [r.header("authorization") for r in scene.plain.requests] == [f"Bearer {KEY}"] * 2
    assert scene.send(f"{PATH}/{asked['id']}")[1]["state"] == "approved"


def test_what_is_approved_once_passes_once(scene: Scene) -> None:
    _, asked = scene.ask(method="GET", url=scene.url("/files"), reason="")
    scene.settle(asked["id"], scope="once")
    assert scene.send(f"{PATH}/{asked['id']}")[1]["scope"] == "once"
    with ThreadPoolExecutor(4) as pool:
        answered = list(pool.map(lambda _: scene.send("/acme/files")[0], range(4)))
    assert sorted(answered) == [200, 403, 403, 403]
    assert scene.send(f"{PATH}/{asked['id']}")[1]["state"] == "used"
    # The same may be asked for again.
    status, again = scene.ask(method="GET", url=scene.url("/files"))
    assert (status, again["state"], again["id"] != asked["id"]) == (202, "pending", True)


def test_what_passes_once_passes_once_on_a_kept_connection_too(scene: Scene) -> None:
    _, asked = scene.ask(method="GET", url=scene.url("/files"))
    scene.settle(asked["id"], scope="once")
    request = b"GET /acme/files HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with scene.running.run_raw(scene.run) as client:
        assert [client.send(request).answer()[0] for _ in range(3)] == [200, 403, 403]


def test_who_is_denied_is_told_so_and_does_not_ask_twice(scene: Scene) -> None:
    _, asked = scene.ask(method="GET", url=scene.url("/files"))
    scene.settle(asked["id"], approved=False)
    assert scene.send(f"{PATH}/{asked['id']}")[1]["state"] == "denied"
    status, again = scene.ask(method="GET", url=scene.url("/files"))
    assert (status, again["id"], again["state"]) == (200, asked["id"], "denied")
    assert scene.pending() == []
    assert scene.send("/acme/files")[0] == 403
    with pytest.raises(UnknownApproval):
        scene.settle(asked["id"])


def test_an_approval_leaves_open_what_is_open(scene: Scene) -> None:
    """The stream of the agent's own model must not end by what a person lets it do beside."""
    _, asked = scene.ask(method="GET", url=scene.url("/files"))
    models = b"GET /acme/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with scene.running.run_raw(scene.run) as client:
        assert client.send(models).answer()[0] == 200
        scene.settle(asked["id"])
        assert client.send(models).answer()[0] == 200
        assert client.send(models.replace(b"models", b"files")).answer()[0] == 200


def test_identical_requests_are_one_and_so_many_may_wait(scene: Scene) -> None:
    first = [scene.ask(url=scene.url("/files")) for _ in range(3)]
    assert len({asked["id"] for _, asked in first}) == 1
    for n in range(MOST_PENDING - 1):
        assert scene.ask(url=scene.url(f"/{n}"))[0] == 202
    status, full = scene.ask(url=scene.url("/more"))
    assert (status, full["error"]["code"]) == (429, "access_full")
    assert scene.ask(url=scene.url("/files"))[0] == 202, "that one waits already"
    other = scene.running.begin_run("acme", id="run-2", policy=POLICY.format(host=scene.plain.url[7:]))
    assert scene.ask(url=scene.url("/files"), run=other)[0] == 202, "another run has its own"


def test_a_run_may_ask_so_often_in_all(scene: Scene) -> None:
    for n in range(MOST):
        status, asked = scene.ask(url=scene.url(f"/{n}"))
        assert status == 202
        scene.settle(asked["id"], approved=False)
    assert scene.ask(url=scene.url("/more"))[0] == 429
    # A restarted gateway has not forgotten it.
    assert len(access_requests.load(scene.running.store, "run-1")) == MOST


def test_a_run_sees_its_own_requests_alone(scene: Scene) -> None:
    _, asked = scene.ask(url=scene.url("/files"))
    other = scene.running.begin_run("acme", id="run-2")
    assert scene.send(f"{PATH}/{asked['id']}", run=other)[0] == 404
    assert scene.send(PATH, run=other)[1] == {"requests": []}
    assert [r["id"] for r in scene.send(PATH)[1]["requests"]] == [asked["id"]]
    # There is no way to decide here.
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert scene.send(f"{PATH}/{asked['id']}", method=method, body={"approve": True})[0] == 404
    assert len(scene.pending()) == 1


def test_only_a_run_asks_here_and_not_inside_of_anything(scene: Scene) -> None:
    with scene.running.raw() as client:
        key = scene.running.key("acme")
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nContent-Length: 2\r\n\r\n{{}}"
        )
        status, _, _ = client.send(head.encode()).answer()
    assert status == 404
    assert scene.send(scene.url(PATH), method="POST", body={})[0] == 403, "that is the provider's"


def test_nobody_approves_what_no_rule_opens(scene: Scene) -> None:
    for url, code in (
        (scene.url("/keys/new"), "off_limits"),
        ("http://127.0.0.1:9/x", "address_refused"),
        ("https://169.254.169.254/x", "address_refused"),
        (scene.url("/%2e%2e%2fx"), "malformed"),
        (scene.url("/a*b"), "denied"),
        ("no address", "malformed"),
    ):
        status, refused = scene.ask(url=url)
        assert (status in (400, 403), refused["error"]["code"]) == (True, code), url
        assert "ask" not in refused["error"], url
    assert scene.send("/acme/keys/new")[1]["error"]["code"] == "off_limits"
    assert "ask" not in scene.send("/acme/keys/new")[1]["error"]
    assert scene.pending() == []


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b'{"url": 1}', b"{}", b'{"url": "https://a.example/", "grant": "acme"}', b'"\xff"',
     b'{"method": "get it", "url": "https://a.example/"}', b"[" * 9000],
)  # fmt: skip
def test_what_is_no_request_for_access_is_told_so(scene: Scene, body: bytes) -> None:
    status, told = scene.send(PATH, method="POST", body=body)
    assert (status, told["error"]["code"]) == (400, "malformed")
    assert scene.pending() == []


def test_a_body_may_come_in_pieces_and_no_longer_than_so(scene: Scene) -> None:
    body = json.dumps({"url": scene.url("/files")})
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with scene.running.run_raw(scene.run) as client:
        assert client.send(head, body[:9], body[9:]).answer()[0] == 202
        assert client.send(head, body).answer()[0] == 202
        long = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert client.send(long, "4001\r\n" + "x" * 0x4001 + "\r\n").answer()[0] == 413
    with scene.running.run_raw(scene.run) as client:
        client.send(long, "4000\r\n" + "x" * 0x4000 + "\r\n")

        def received() -> int:
            return sum(e.up.received for c in scene.running.gateway.connections for e in c.queue)

        scene.plain.until(lambda: scene.running.do(received) == 0x4000)
        assert client.send("1\r\nx\r\n").answer()[0] == 413


def test_what_a_run_says_is_shown_on_one_line_and_without_secrets(scene: Scene) -> None:
    reason = f"please\n\x1b[2Japproved by root \u202e {KEY} " + "a" * 1000
    _, asked = scene.ask(url=scene.url("/files"), reason=reason)
    (pending,) = scene.pending()
    assert pending.reason.isprintable()
    assert len(pending.reason) <= 300
    assert KEY not in json.dumps(asked) + pending.reason
    # What cannot be shown as it is cannot be asked for.
    for path in (f"/{KEY}", "/" + "a" * 400):
        assert scene.ask(url=scene.url(path))[0] == 429


def test_an_account_may_be_asked_for_and_serves_that_run(scene: Scene) -> None:
    status, refused = scene.send("/other/models")
    assert (status, refused["error"]["code"]) == (404, "unknown_provider")
    assert refused["error"]["ask"]["body"]["grant"] == "other"
    _, asked = scene.send(PATH, method="POST", body=refused["error"]["ask"]["body"])
    (pending,) = scene.pending()
    assert (pending.account, pending.allows) == ("other@default", "--grant other@default")
    with pytest.raises(UsageError):
        scene.settle(asked["id"], scope="once")
    scene.settle(asked["id"])
    told = scene.send(f"{PATH}/{asked['id']}")[1]
    assert told["base_url"] == "http://127.0.0.1:3128/other@default"
    # The run's policy counts for it too.
    assert scene.send("/other/models")[1]["error"]["code"] == "denied"
    free = scene.running.begin_run("acme", id="run-2")
    _, asked = scene.ask(grant="other@default", run=free)
    scene.settle(asked["id"])
    told = scene.send(f"{PATH}/{asked['id']}", run=free)[1]
    assert scene.send("/other/models", run=free)[0] == 200
    shown = f"Authorization: Bearer {told['placeholder']}\r\n"
    assert scene.send("/other/models", run=free, headers=shown)[0] == 200
    assert [r.header("authorization") for r in scene.other.requests] == [f"Bearer {KEY}"] * 2
    assert scene.ask(grant="other", run=free)[1]["state"] == "allowed"


def test_no_account_is_granted_without_a_login_and_none_that_is_not_there(scene: Scene) -> None:
    _, asked = scene.ask(grant="other@work")
    with pytest.raises(NotLoggedIn):
        scene.settle(asked["id"])
    assert [pending.id for pending in scene.pending()] == [asked["id"]]
    assert scene.ask(grant="nobody")[0] == 404
    assert scene.ask(grant="../x")[0] == 404


def test_who_waits_hears_of_the_decision_at_once(scene: Scene) -> None:
    _, asked = scene.ask(url=scene.url("/files"))
    with scene.running.run_raw(scene.run) as client:
        client.send(f"GET {PATH}/{asked['id']}?wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        scene.plain.until(lambda: scene.running.do(lambda: len(scene.running.gateway.access._waiting)) == 1)
        scene.settle(asked["id"], approved=False)
        _, _, body = client.answer()
    assert json.loads(body)["state"] == "denied"


def test_nobody_is_waited_for_longer_than_asked(tmp_path: Path) -> None:
    home = tmp_path / "h"
    home.mkdir(0o700)
    clock = SteppedClock()
    with Upstream() as plain, running_gateway(declared(plain.url), home=home, clock=clock) as running:
        scene = Scene(running, plain, plain, running.begin_run("acme"), Paths(home=home))
        _, asked = scene.ask(url="https://a.example/")
        with running.run_raw(scene.run) as client:
            client.send(f"GET {PATH}/{asked['id']}?wait=5 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            plain.until(lambda: running.do(lambda: len(running.gateway.access._waiting)) == 1)
            running.do(lambda: clock.advance(5))
            assert json.loads(client.answer()[2])["state"] == "pending"


def test_another_host_is_asked_for_as_a_tunnel(scene: Scene) -> None:
    status, refused = scene.send("a.example:443", method="CONNECT")
    assert (status, refused["error"]["ask"]["body"]["url"]) == (403, "a.example:443")
    _, first = scene.send(PATH, method="POST", body=refused["error"]["ask"]["body"])
    _, second = scene.ask(method="POST", url="https://a.example/x/y")
    assert first["id"] == second["id"], "only the tunnel can be decided on"
    (pending,) = scene.pending()
    assert pending.allows == "CONNECT a.example/**"
    scene.settle(first["id"])
    assert scene.ask(method="CONNECT", url="a.example:443")[1]["state"] == "allowed"
    assert scene.ask(method="CONNECT", url="a.example:8443")[1]["state"] == "pending"


def test_asking_and_deciding_are_in_the_audit(scene: Scene) -> None:
    from valetkey.gateway.audited import Audited

    audit = scene.running.gateway.audit
    assert audit is not None
    audited = Audited(audit, store=scene.running.store, paths=scene.paths, clock=SystemClock())  # type: ignore[arg-type]
    scene.running.gateway.approvals.decided = audited.decided
    _, asked = scene.ask(url=scene.url("/files"))
    scene.settle(asked["id"])
    (told,) = scene.entries("access-requested")
    assert (told["who"], told["detail"]["url"]) == ("run:run-1", scene.url("/files"))
    (told,) = scene.entries("approval")
    assert (told["who"], told["detail"]["client"], told["detail"]["scope"]) == ("person:ada", "run:run-1", "run")


def test_what_cannot_be_recorded_is_not_approved(scene: Scene) -> None:
    def fails(*_: object) -> None:
        raise AuditUnwritable("the disk is full", hint="free some space")

    _, asked = scene.ask(url=scene.url("/files"))
    scene.running.gateway.approvals.decided = fails
    with pytest.raises(AuditUnwritable):
        scene.settle(asked["id"])
    assert scene.send("/acme/files")[0] == 403
    assert len(scene.pending()) == 1


def test_a_held_request_of_a_run_may_be_allowed_for_all_of_the_run(scene: Scene) -> None:
    policy = f'default = "allow"\n[[rule]]\nask = "* 127.0.0.1:{scene.plain.port}/pay/**"\n'
    run = scene.running.begin_run("acme", id="run-2", policy=policy)
    approvals, access = scene.running.gateway.approvals, scene.running.gateway.access
    with scene.running.run_raw(run) as client:
        client.send("GET /acme/pay/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
        scene.plain.until(lambda: scene.running.do(approvals.pending))
        (pending,) = scene.running.do(approvals.pending)
        assert (pending.kind, pending.client) == ("request", "run:run-2")
        scene.running.do(lambda: access.check_allowable(pending))
        scene.running.do(lambda: access.allow(approvals.settle(pending.id, True, "ada", "run"), "ada"))
        assert client.answer()[0] == 200
    assert scene.send("/acme/pay/x", run=run)[0] == 200


def test_nothing_is_left_of_a_run_that_has_ended(scene: Scene) -> None:
    _, asked = scene.ask(url=scene.url("/files"))
    scene.running.runs.end("run-1")
    scene.running.do(scene.running.gateway.refresh)
    assert scene.pending() == []
    assert access_requests.stored_runs(scene.running.store) == frozenset()
    with pytest.raises(UnknownApproval):
        scene.settle(asked["id"])
    # Whoever writes late does not bring it back.
    scene.running.do(lambda: scene.running.gateway.access.use("run-1", asked["id"]))
    assert access_requests.stored_runs(scene.running.store) == frozenset()


def test_what_cannot_be_read_is_not_taken_for_nothing(scene: Scene) -> None:
    store = scene.running.store
    scene.ask(url=scene.url("/files"))
    good = store.document("run-access", "run-1")
    assert good is not None
    for body in ("", "{}", '{"format": 2, "requests": []}', good.body.replace('"pending"', '"granted"')):
        store.put_document(
            Document(kind="run-access", id="run-1", title="run-1", body=body, updated_at=good.updated_at)
        )
        with pytest.raises(RecordDamaged):
            access_requests.load(store, "run-1")
        scene.running.do(scene.running.gateway.refresh)
        assert scene.send("/acme/models")[1]["error"]["code"] == "run_refused"


@pytest.mark.parametrize(
    "body",
    [
        b'{"url": "https://\\ud800.example/"}',
        b'{"url": "https://a.example/\\ud800"}',
        b'{"url": "https://a.example/\\u202e"}',
        b'{"url": "https://a.example/x\\"\\n[[rule]]"}',
        b'{"url": "https://a.example/\\\\u002a"}',
        b'{"url": "https://a.example/%5Cu002a"}',
        b'{"url": "https://a.example/**", "method": "GET"}',
        b'{"url": "a.example/**", "method": "CONNECT"}',
        b'{"url": "*:443", "method": "CONNECT"}',
        b'{"url": "*.example:443", "method": "CONNECT"}',
        b'{"url": "a.example:443@b.example:443", "method": "CONNECT"}',
        b'{"url": "/valetkey/access"}',
        b'{"url": "http://127.0.0.1:3128/valetkey/access"}',
        b'{"url": "http://127.0.0.1:4380/acme/files"}',
        b'{"url": "http://[::ffff:127.0.0.1]/x"}',
        b'{"url": "http://169.254.169.254/latest"}',
        b'{"url": "https://a.example/x", "method": "GET,POST"}',
        b'{"url": "https://a.example/x", "method": "*"}',
        b'{"url": "https://a.example/x", "method": "get"}',
        b'{"url": {"x": 1}}',
        b'{"grant": "../../etc"}',
        b'{"grant": "acme@\\ud800"}',
        b'{"grant": "acme", "url": "https://a.example"}',
        b"[" * 16000,
        b"\xff\xfe{",
        b"[]",
        b"",
    ],
    ids=range(27),
)
def test_no_request_for_access_asks_for_more_than_a_person_reads(scene: Scene, body: bytes) -> None:
    status, told = scene.send(PATH, method="POST", body=body)
    assert 400 <= status < 500, told
    assert scene.pending() == []


@pytest.mark.parametrize("wait", ["nan", "inf", "-1", "1e400", "x", ""])
def test_nobody_waits_for_what_he_has_not_asked_for(scene: Scene, wait: str) -> None:
    assert scene.send(f"{PATH}/0000?wait={wait}&wait=60")[0] == 404


def test_an_approval_opens_no_other_spelling_of_a_path_nor_another_host_port_or_method(scene: Scene) -> None:
    _, asked = scene.ask(method="POST", url=scene.url("/files"))
    scene.settle(asked["id"])
    near = ("/files/", "//files", "/files;x", "/Files", "/files%2f", "/files%00", "/files/..", "/files/../keys/x")
    for target in (f"/acme{path}" for path in near):
        status, _ = scene.send(target, method="POST")
        # What is the same once it is in normal form is sent in that.
        assert status in (400, 403) or target == "/acme//files", target
    assert {request.target for request in scene.plain.requests} <= {"/files"}
    for method in ("PUT", "DELETE", "GET", "PATCH"):
        assert scene.send("/acme/files", method=method)[0] == 403
    override = "X-HTTP-Method-Override: DELETE\r\n"
    assert scene.send("/acme/files", method="POST", headers=override)[0] == 403
    other = f"http://127.0.0.1:{scene.other.port}/files"
    assert scene.send(other, method="POST")[0] == 403
    assert scene.other.requests == []

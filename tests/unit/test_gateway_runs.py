"""Runs at the gateway: the socket is who asks, placeholders choose an account, and nothing foreign goes out."""

from __future__ import annotations

import base64
import json
import os
import ssl
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.support.gateway import KEY, Raw, RunningGateway, acme, running_gateway
from tests.support.lockable_store import LockableStore
from tests.support.rig import faults
from tests.support.tls import CertificateAuthority
from tests.support.upstream import Upstream
from valetkey.clock import SystemClock
from valetkey.config import Paths
from valetkey.gateway.admission import Shown, identify_run
from valetkey.gateway.limits import Limits
from valetkey.gateway.message import ReadHead
from valetkey.gateway.plan import Tunnel
from valetkey.gateway.runs import BegunRun
from valetkey.gateway.server import EngineSettings
from valetkey.provider import Api, AuthMethod, Inject, Provider, Sandbox
from valetkey.store import Document
from valetkey.testing.clock import START

WORK = "sk-" + "work" + os.urandom(12).hex()
FOREIGN = "sk-" + "attacker" + os.urandom(8).hex()


def declared(base_url: str, id: str = "acme", *, sandbox: Sandbox | None = None, **inject: object) -> Provider:
    """Give a provider that wants its key so, and whose sandbox has a variable for it."""
    host = base_url.split("/")[2]
    how = inject or {"set": {"Authorization": "Bearer {key}"}}
    method = AuthMethod(
        id="api-key",
        kind="api-key",
        inject=(Inject(**how),),  # type: ignore[arg-type]  # a test's
        sandbox=sandbox or Sandbox(environment={f"{id.upper()}_API_KEY": "{placeholder}"}, placeholder="sk-" + id),
    )
    return Provider(id=id, name=id, api=Api(base_url=base_url, hosts=(host,)), auth=(method,), origin="user")


@dataclass
class Scene:
    """A gateway with two accounts of one provider, a provider on another host, and one over TLS."""

    running: RunningGateway
    plain: Upstream
    other: Upstream
    secure: Upstream

    def host(self, upstream: Upstream) -> str:
        return f"127.0.0.1:{upstream.port}"

    def get(self, run: BegunRun, target: str, *headers: str, method: str = "GET", body: bytes = b"") -> tuple[int, str]:
        """Ask by the run's socket; give the status and the code of the gateway's own answer."""
        with self.running.run_raw(run) as client:
            return asked(client, target, *headers, method=method, body=body)

    def intercepted(self, run: BegunRun, *headers: str, path: str = "/x") -> tuple[int, str]:
        """Ask through a tunnel of the run's socket, believing the run's own authority and no other."""
        host = self.host(self.secure)
        with self.running.run_raw(run) as client:
            status, _ = client.send(f"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n").head()
            assert status == 200
            client.tls(ssl.create_default_context(cadata=run.certificate), "127.0.0.1")
            return asked(client, path, *headers, host=host)

    def placeholder(self, run: BegunRun, account: str, variable: str = "") -> str:
        return run.placeholders[self.running.broker.resolve(account)][variable]

    def sent(self) -> list[str | None]:
        """Give the Authorization of everything that reached a provider."""
        return [r.header("authorization") for u in (self.plain, self.other, self.secure) for r in u.requests]


def asked(
    client: Raw, target: str, *headers: str, method: str = "GET", body: bytes = b"", host: str = "localhost"
) -> tuple[int, str]:
    if "://" in target:
        host = target.split("/")[2]
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *headers]
    lines += [f"Content-Length: {len(body)}"] if body else []
    status, _, content = client.send("\r\n".join([*lines, "", ""]).encode() + body).answer()
    told = json.loads(content) if content.startswith(b'{"type": "error"') else {}
    return status, told.get("error", {}).get("code", "")


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    home = tmp_path / "h"
    home.mkdir(0o700)
    authority = CertificateAuthority(tmp_path)
    with (
        faults(),
        Upstream() as plain,
        Upstream() as other,
        Upstream(tls=authority.context()) as secure,
        running_gateway(
            declared(plain.url),
            declared(other.url, "other"),
            declared(secure.url, "secure"),
            home=home,
            ca_file=authority.ca_file,
        ) as running,
    ):
        running.log_in("acme@work", WORK)
        yield Scene(running=running, plain=plain, other=other, secure=secure)


# --- who asks --------------------------------------------------------------------------------


def test_a_run_needs_no_key_by_any_way(scene: Scene) -> None:
    run = scene.running.begin_run("acme", "secure")
    assert scene.get(run, "/acme/x") == (200, "")
    assert scene.get(run, f"http://{scene.host(scene.plain)}/x") == (200, "")
    assert scene.intercepted(run) == (200, "")
    assert scene.sent() == [f"Bearer {KEY}"] * 3
    assert {row.client for row in scene.running.wait_for_rows(3)} == {"run:run-1"}


@pytest.mark.parametrize("way", ["header", "basic", "query", "proxy", "tunnel"])
def test_a_valet_key_is_refused_at_a_runs_socket(scene: Scene, way: str) -> None:
    run = scene.running.begin_run("acme", "secure")
    key = scene.running.key("acme", "secure")
    basic = base64.b64encode(f"x:{key}".encode()).decode()
    match way:
        case "header":
            found = scene.get(run, "/acme/x", f"Authorization: Bearer {key}")
        case "basic":
            found = scene.get(run, "/acme/x", f"Authorization: Basic {basic}")
        case "query":
            found = scene.get(run, f"/acme/x?key={key}")
        case "proxy":
            found = scene.get(run, f"http://{scene.host(scene.plain)}/x", f"Proxy-Authorization: Basic {basic}")
        case _:
            found = scene.intercepted(run, f"x-api-key: {key}")
    assert found == (403, "foreign_key")
    assert scene.sent() == []


def test_a_placeholder_counts_nowhere_but_at_its_own_socket(scene: Scene) -> None:
    run = scene.running.begin_run("acme")
    another = scene.running.begin_run("acme", id="run-2")
    shown = f"Authorization: Bearer {scene.placeholder(run, 'acme')}"
    with scene.running.raw() as client:
        assert asked(client, "/acme/x", shown) == (401, "key_refused")
    with scene.running.raw() as client:
        proof = base64.b64encode(f"x:{scene.placeholder(run, 'acme')}".encode()).decode()
        target = f"http://{scene.host(scene.plain)}/x"
        assert asked(client, target, f"Proxy-Authorization: Basic {proof}") == (407, "key_refused")
    assert scene.get(another, "/acme/x", shown) == (403, "foreign_credential")
    assert scene.get(another, f"/acme/x?a={scene.placeholder(run, 'acme')}") == (403, "foreign_credential")
    assert scene.get(another, "/acme/x", f"X-Other: {scene.placeholder(run, 'acme')}") == (403, "foreign_credential")
    assert scene.sent() == []
    assert scene.get(run, "/acme/x", shown) == (200, "")


def test_inside_of_a_tunnel_every_path_is_the_providers(scene: Scene) -> None:
    run = scene.running.begin_run("secure")
    assert scene.intercepted(run, path="/valetkey/access") == (200, "")
    assert scene.sent() == [f"Bearer {KEY}"]


# --- which account ---------------------------------------------------------------------------


def test_the_placeholder_chooses_the_account_and_without_one_the_first_granted_serves(scene: Scene) -> None:
    run = scene.running.begin_run("acme", "acme@work")
    target = f"http://{scene.host(scene.plain)}/x"
    basic = base64.b64encode(f"x-access-token:{scene.placeholder(run, 'acme@work')}".encode()).decode()
    variable = scene.placeholder(run, "acme@work", "ACME_API_KEY")
    for shown in (
        f"Authorization: Bearer {variable}",
        f"Authorization: token {variable}",
        f"Authorization: Basic {basic}",
        f"x-api-key: {variable}",
        f"x-goog-api-key: {variable}",
    ):
        assert scene.get(run, target, shown) == (200, "")
        assert scene.get(run, "/acme/x", shown) == (200, "")
    assert scene.get(run, f"{target}?key={variable}&a=1") == (200, "")
    assert scene.get(run, "/acme@work/x") == (200, "")
    assert scene.sent() == [f"Bearer {WORK}"] * 12
    assert {row.account for row in scene.running.wait_for_rows(12)} == {"acme@work"}
    assert all("vkp_" not in repr((r.target, r.headers)) for r in scene.plain.requests)
    assert scene.get(run, target) == (200, "")
    assert scene.sent()[-1] == f"Bearer {KEY}"


def test_a_kept_connection_serves_each_placeholder_its_own_account(scene: Scene) -> None:
    run = scene.running.begin_run("acme", "acme@work")
    first, second = scene.placeholder(run, "acme"), scene.placeholder(run, "acme@work")
    with scene.running.run_raw(run) as client:
        for shown in (first, first, second, second, first):
            assert asked(client, "/acme/x", f"Authorization: Bearer {shown}") == (200, "")
    assert scene.sent() == [f"Bearer {key}" for key in (KEY, KEY, WORK, WORK, KEY)]


@pytest.mark.parametrize("granted", [True, False])
def test_a_placeholder_is_resolved_on_no_other_host(scene: Scene, granted: bool) -> None:
    run = scene.running.begin_run("acme", *(["other"] if granted else []))
    shown = f"Authorization: Bearer {scene.placeholder(run, 'acme')}"
    assert scene.get(run, f"http://{scene.host(scene.other)}/x", shown) == (403, "not_granted")
    if granted:
        assert scene.get(run, "/other/x", shown) == (403, "not_granted")
        assert scene.get(run, "/other/x", shown, f"x-api-key: {scene.placeholder(run, 'other')}") == (
            403,
            "foreign_credential",
        )
    assert scene.sent() == []


def test_a_placeholder_that_is_no_credential_goes_nowhere(scene: Scene) -> None:
    run = scene.running.begin_run("acme")
    shown = scene.placeholder(run, "acme")
    assert scene.get(run, f"/acme/{shown}") == (400, "placeholder_in_request")
    assert scene.get(run, "/acme/x", f"X-Other: {shown}") == (400, "placeholder_in_request")
    assert scene.sent() == []


# --- what is not ours ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        "Authorization: Bearer <F>",
        "Authorization: Basic <B>",
        "x-api-key: <F>",
        "x-goog-api-key: <F>",
        "api-key: <F>",
        "private-token: <F>",
    ],
)
def test_a_credential_that_the_tool_brought_is_refused_on_a_granted_host(scene: Scene, header: str) -> None:
    header = header.replace("<F>", FOREIGN).replace("<B>", base64.b64encode(f"x:{FOREIGN}".encode()).decode())
    run = scene.running.begin_run("acme", "secure")
    assert scene.get(run, "/acme/x", header) == (403, "foreign_credential")
    assert scene.intercepted(run, header) == (403, "foreign_credential")
    assert scene.get(run, "/acme/x", header, f"Authorization: Bearer {scene.placeholder(run, 'acme')}")[0] == 403
    assert scene.sent() == []


def test_one_in_the_query_is_refused_too(scene: Scene) -> None:
    run = scene.running.begin_run("acme")
    assert scene.get(run, f"/acme/x?access_token={FOREIGN}") == (403, "foreign_credential")
    assert scene.get(run, f"/acme/x?%61pi_key={FOREIGN}") == (403, "foreign_credential")
    assert scene.sent() == []


def test_an_empty_credential_and_a_cookie_are_none(scene: Scene) -> None:
    run = scene.running.begin_run("acme")
    assert scene.get(run, "/acme/x", "Authorization: Bearer ", "Cookie: a=b") == (200, "")
    assert scene.sent() == [f"Bearer {KEY}"]
    assert scene.plain.requests[0].header("cookie") is None


def test_what_a_refusal_says_names_the_run_and_whom_to_ask(scene: Scene) -> None:
    run = scene.running.begin_run("acme", policy='default = "deny"\n')
    with scene.running.run_raw(run) as client:
        client.send("CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n")
        _, _, content = client.answer()
    error = json.loads(content)["error"]
    assert "run-1" in error["hint"]
    assert "--allow example.com" in error["hint"]
    with scene.running.run_raw(run) as client:
        _, _, content = client.send("GET /acme/x HTTP/1.1\r\nHost: x\r\n\r\n").answer()
    error = json.loads(content)["error"]
    assert "run-1" in error["hint"]
    assert error["allow_line"].startswith('allow = "GET ')
    assert scene.sent() == []


# --- where else a credential stands ----------------------------------------------------------


def test_a_placeholder_in_the_path_is_replaced_and_a_path_without_is_refused(tmp_path: Path) -> None:
    with Upstream() as upstream:
        provider = declared(upstream.url, replace={"path": "{key}"})
        with running_gateway(provider, home=tmp_path) as running:
            scene = Scene(running=running, plain=upstream, other=upstream, secure=upstream)
            run = running.begin_run("acme")
            shown = scene.placeholder(run, "acme", "ACME_API_KEY")
            assert scene.get(run, f"/acme/bot{shown}/send") == (200, "")
            assert [r.target for r in upstream.requests] == [f"/bot{KEY}/send"]
            assert scene.get(run, f"/acme/bot{FOREIGN}/send") == (403, "foreign_credential")
            assert scene.get(run, f"/acme/bot{FOREIGN}/send?a={shown}") == (403, "foreign_credential")
    assert len(upstream.requests) == 1


def test_a_placeholder_in_the_body_is_replaced_and_anothers_is_not(tmp_path: Path) -> None:
    with Upstream() as upstream:
        provider = declared(upstream.url, replace={"body": "{key}"})
        with running_gateway(provider, home=tmp_path) as running:
            running.log_in("acme@work", WORK)
            scene = Scene(running=running, plain=upstream, other=upstream, secure=upstream)
            run = running.begin_run("acme", "acme@work")
            own, others = scene.placeholder(run, "acme", "ACME_API_KEY"), scene.placeholder(run, "acme@work")
            with running.run_raw(run) as client:
                for text in (own, others, "none", own):
                    body = json.dumps({"key": text}).encode()
                    assert asked(client, "/acme/x", method="POST", body=body) == (200, "")
    bodies = [json.loads(r.body)["key"] for r in upstream.requests]
    assert bodies == [KEY, others, "none", KEY]


# --- other hosts -----------------------------------------------------------------------------


def test_a_host_that_is_near_cannot_be_allowed_and_none_is_reached(scene: Scene) -> None:
    run = scene.running.begin_run("acme", allow=("example.com",))
    assert scene.get(run, f"http://{scene.host(scene.other)}/x") == (403, "address_refused")
    assert scene.get(run, f"http://localhost:{scene.other.port}/x") == (403, "address_refused")


# --- limits, ends ----------------------------------------------------------------------------


def test_limits_are_the_runs(scene: Scene) -> None:
    run = scene.running.begin_run("acme", limits=Limits(requests_per_minute=1))
    another = scene.running.begin_run("acme", id="run-2")
    assert scene.get(run, "/acme/x") == (200, "")
    assert scene.get(run, "/acme/x") == (429, "limit_reached")
    assert scene.get(another, "/acme/x") == (200, "")


def test_a_run_has_so_many_connections_and_no_more(tmp_path: Path) -> None:
    settings = EngineSettings(most_of_a_run=2)
    with Upstream() as upstream, running_gateway(acme(upstream.url), home=tmp_path, settings=settings) as running:
        run, another = running.begin_run("acme"), running.begin_run("acme", id="run-2")
        with running.run_raw(run) as first, running.run_raw(run) as second, running.run_raw(another) as elsewhere:
            assert asked(first, "/acme/x") == (200, "")
            assert asked(second, "/acme/x") == (200, "")
            with running.run_raw(run) as third:
                assert third.closed()
            assert asked(elsewhere, "/acme/x") == (200, "")


def test_the_end_of_a_run_closes_what_it_has_open_and_takes_its_socket_away(scene: Scene) -> None:
    run = scene.running.begin_run("acme", "secure")
    another = scene.running.begin_run("acme", id="run-2")
    host = scene.host(scene.secure)
    with scene.running.run_raw(run) as idle, scene.running.run_raw(run) as tunnel, scene.running.run_raw(another) as on:
        assert asked(idle, "/acme/x") == (200, "")
        assert asked(on, "/acme/x") == (200, "")
        tunnel.send(f"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n").head()
        tunnel.tls(ssl.create_default_context(cadata=run.certificate), "127.0.0.1")
        assert asked(tunnel, "/x", host=host) == (200, "")
        scene.running.runs.end("run-1")
        scene.running.do(scene.running.gateway.refresh)
        assert idle.closed()
        assert tunnel.closed()
        assert not run.folder.exists()
        assert asked(on, "/acme/x") == (200, "")


def test_a_new_run_of_the_same_id_has_other_placeholders_and_another_authority(scene: Scene) -> None:
    run = scene.running.begin_run("acme")
    with scene.running.run_raw(run) as old:
        assert asked(old, "/acme/x") == (200, "")
        scene.running.runs.end("run-1")
        again = scene.running.begin_run("acme")
        assert old.closed()
    assert again.folder == run.folder
    assert scene.get(again, "/acme/x", f"x-api-key: {scene.placeholder(run, 'acme')}") == (403, "foreign_credential")
    assert scene.get(again, "/acme/x", f"x-api-key: {scene.placeholder(again, 'acme')}") == (200, "")
    assert run.certificate != again.certificate


def test_a_socket_that_was_removed_is_made_anew(scene: Scene) -> None:
    run = scene.running.begin_run("acme")
    (run.folder / "gateway.sock").unlink()
    scene.running.do(scene.running.gateway.refresh)
    assert scene.get(run, "/acme/x") == (200, "")


def test_folder_and_socket_are_ours_alone(scene: Scene) -> None:
    run = scene.running.begin_run("acme")
    for path in (run.folder.parent, run.folder):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE((run.folder / "gateway.sock").stat().st_mode) == 0o600
    assert [path.name for path in run.folder.iterdir()] == ["gateway.sock"]


def test_a_socket_that_is_anothers_by_now_is_left(scene: Scene) -> None:
    run = scene.running.begin_run("acme")
    path = run.folder / "gateway.sock"
    path.unlink()
    path.write_text("another gateway's")
    scene.running.do(lambda: scene.running.gateway._run_sockets.close())
    assert path.read_text() == "another gateway's"


def test_a_tunnel_does_not_become_a_new_runs_of_the_same_id(scene: Scene) -> None:
    run = scene.running.begin_run("secure")
    host = scene.host(scene.secure)
    with scene.running.run_raw(run) as tunnel:
        tunnel.send(f"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n").head()
        tunnel.tls(ssl.create_default_context(cadata=run.certificate), "127.0.0.1")
        assert asked(tunnel, "/x", host=host) == (200, "")

        def replaced_unseen() -> None:
            # In the gateway's own turn: it finds out when the request comes.
            scene.running.runs.end("run-1")
            scene.running.runs.begin(
                run="run-1",
                grants=[scene.running.broker.resolve("secure")],
                catalogue=scene.running.catalogue,  # type: ignore[arg-type]  # the part of a Catalogue that is used
                environ={},
                paths=Paths(home=scene.running.home),
            )
            tunnel.send(f"GET /y HTTP/1.1\r\nHost: {host}\r\n\r\n")

        scene.running.do(replaced_unseen)
        tunnel.rest()
    assert [r.target for r in scene.secure.requests] == ["/x"]


def test_a_tunnel_counts_for_the_run_that_it_was_opened_for_alone(scene: Scene) -> None:
    run = scene.running.begin_run("secure")
    old = scene.running.gateway.ring.run(run.id)
    scene.running.runs.end(run.id)
    scene.running.begin_run("secure")
    ring = scene.running.gateway.ring
    new = ring.run(run.id)
    assert old is not None
    assert new is not None
    for live, counts in ((old, False), (new, True)):
        tunnel = Tunnel(host="127.0.0.1", port=scene.secure.port, live=live, token=b"")
        found = identify_run(ReadHead(), b"/x", run=run.id, tunnel=tunnel, ring=ring)
        assert isinstance(found, Shown) is counts


def test_while_the_store_is_locked_every_request_is_refused_and_the_sockets_stay(tmp_path: Path) -> None:
    store = LockableStore(clock=SystemClock())
    with Upstream() as upstream, running_gateway(acme(upstream.url), home=tmp_path, store=store) as running:
        run = running.begin_run("acme")
        file = (run.folder / "gateway.sock").stat().st_ino
        store.locked = True
        running.do(running.gateway.refresh)
        with running.run_raw(run) as client:
            assert asked(client, "/acme/x") == (503, "store_locked")
        store.locked = False
        running.do(running.gateway.refresh)
        with running.run_raw(run) as client:
            assert asked(client, "/acme/x") == (200, "")
        store.put_document(Document(kind="run", id="run-1", title="", body="{}", updated_at=START))
        running.do(running.gateway.refresh)
        with running.run_raw(run) as client:
            assert asked(client, "/acme/x") == (403, "run_refused")
        assert (run.folder / "gateway.sock").stat().st_ino == file
    assert len(upstream.requests) == 1


def test_a_restricted_login_serves_the_run_of_its_agent(tmp_path: Path) -> None:
    with Upstream() as upstream:
        provider = acme(upstream.url)
        method = replace(provider.auth[0], standing="restricted", for_agents=("claude",))
        with running_gateway(replace(provider, auth=(method,)), home=tmp_path) as running:
            record = running.store.load(running.broker.resolve("acme"))
            assert record is not None
            running.store.save(replace(record, restricted=True))
            run = running.begin_run("acme", agent="claude")
            with running.run_raw(run) as client:
                assert asked(client, "/acme/x") == (200, "")
    assert [r.header("authorization") for r in upstream.requests] == [f"Bearer {KEY}"]

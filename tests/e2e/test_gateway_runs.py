"""Runs at the real gateway: no crossing, as before after a kill, nothing left at the end; git and curl in one."""

from __future__ import annotations

import base64
import contextlib
import json
import random
import secrets
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import IncompleteRead
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine
from tests.support.gateway_process import background, declare, kill, until
from tests.support.gateway_process import end as end_gateway
from tests.support.repositories import create, git_environ
from tests.support.runs import SocketClient, ask, begin, end, forwarded, opened, ref
from tests.support.upstreams import Upstreams
from tests.support.ways import Access, trusting
from tests.support.workplace import Workplace
from valetkey.gateway.runs import BegunRun
from valetkey.testing.canary import holding, holds
from valetkey.testing.gateway import GatewayProcess
from valetkey.testing.local_server import Answer, LocalServer, Received, Reply, Stream

REQUESTS = 1000
THREADS = 8


@pytest.fixture
def line(home: Path) -> Iterator[CommandLine]:
    line = CommandLine(home=home)
    yield line
    end_gateway(line)


class Provider:
    """Remembers which credential came for which path, and says it in its answer."""

    def __init__(self) -> None:
        self.seen: Counter[tuple[str, str]] = Counter()
        self._guard = threading.Lock()
        self.more = threading.Event()

    def __call__(self, request: Received) -> Reply:
        shown = request.headers.get("authorization", "")
        if request.path == "/stream":
            return Stream(headers={"content-type": "text/event-stream"}, pieces=self._pieces())
        with self._guard:
            self.seen[request.path, shown] += 1
        return Answer(headers={"content-type": "text/plain"}, body=f"you sent {shown}".encode())

    def _pieces(self) -> Iterator[bytes]:
        yield b"data: first\n\n"
        self.more.wait(60)
        yield b"data: second\n\n"


@pytest.fixture
def provider() -> Iterator[tuple[Provider, str]]:
    script = Provider()
    with LocalServer(script) as server:
        yield script, server.url
        script.more.set()


def second_account(line: CommandLine) -> str:
    key = "sk-" + secrets.token_hex(20)
    done = line("login", "acme", "--account", "work", "--key", "-", "--no-verify", stdin=key)
    assert done.status == 0, done.err
    return key


def test_two_runs_with_two_accounts_on_one_host_never_cross(line: CommandLine, provider: tuple[Provider, str]) -> None:
    script, url = provider
    keys = {"one": declare(line, url), "two": second_account(line)}
    with background(line):
        runs = {
            "one": begin(line.home, "acme", run="one"),
            "two": begin(line.home, "acme@work", run="two"),
            # Both accounts in one: there the placeholder chooses.
            "both": begin(line.home, "acme", "acme@work", run="both"),
        }
        both = {"one": "acme", "two": "acme@work"}
        host = url.removeprefix("http://")

        def work(number: int) -> set[tuple[int, bytes]]:
            chance = random.Random(number)
            clients = {name: SocketClient(run) for name, run in runs.items()}
            answers = set()
            for _ in range(REQUESTS // THREADS):
                whose, way = chance.choice(("one", "two")), chance.choice(("base-url", "proxy"))
                run = chance.choice((whose, "both"))
                headers = {}
                if run == "both" or chance.random() < 0.5:
                    shown = runs[run].placeholders[ref(both[whose])][""]
                    headers = {"Authorization": f"Bearer {shown}"}
                target = f"/acme/{whose}" if way == "base-url" and run != "two" else f"http://{host}/{whose}"
                answers.add(clients[run].ask(target, **headers))
            for client in clients.values():
                client.close()
            return answers

        with ThreadPoolExecutor(THREADS) as pool:
            answers = set().union(*pool.map(work, range(THREADS)))
    assert {status for status, _ in answers} == {200}
    assert set(script.seen) == {(f"/{whose}", f"Bearer {key}") for whose, key in keys.items()}
    assert script.seen.total() == REQUESTS
    # The provider said it in its answers, and nobody heard it.
    assert not any(holds(key, body) for key in keys.values() for _, body in answers)
    for name, run in runs.items():
        assert not any(holding(key, run.folder.rglob("*")) for key in keys.values()), name


def test_after_a_kill_the_next_gateway_serves_a_run_at_the_same_path(
    line: CommandLine, provider: tuple[Provider, str]
) -> None:
    script, url = provider
    key = declare(line, url)
    with background(line):
        policy = f'default = "deny"\n[[rule]]\nallow = "GET {url.removeprefix("http://")}/one"\n'
        run = begin(line.home, "acme", run="one", policy=policy)
        shown = {"Authorization": f"Bearer {run.placeholders[ref('acme')]['']}"}
        folder = run.folder.stat().st_ino
        assert ask(run, "/acme/one", **shown)[0] == 200
        kill(line)
        # Refused, or cut off by the last of its threads that goes.
        with pytest.raises(ConnectionError):
            ask(run, "/acme/one")
        assert line("up", "--json").status == 0
        # What is mounted in a sandbox is the folder: that has to be the same one.
        assert run.folder.stat().st_ino == folder
        assert ask(run, "/acme/one", **shown)[0] == 200
        assert ask(run, "/acme/two")[0] == 403
        assert line("status", "--json").json["gateway"]["runs"] == 1
        kept = opened(line.home).find("one").authority_key.reveal().split("\n")
    # `status` probes by itself.
    assert {asked for asked in script.seen if asked[0] != "/models"} == {("/one", f"Bearer {key}")}
    # The key of its authority is in the store, sealed, and so are its placeholders.
    shown_files = [path for path in line.home.rglob("*") if path.is_file()]
    assert holding(kept[2], shown_files) == []
    assert holding(run.placeholders[ref("acme")][""], shown_files) == []
    # Ended in order, it keeps the folder for the next one.
    assert list(run.folder.iterdir()) == []


def test_what_ended_while_no_gateway_ran_is_refused_by_the_next(
    line: CommandLine, provider: tuple[Provider, str]
) -> None:
    _, url = provider
    declare(line, url)
    with background(line):
        run = begin(line.home, "acme", run="one")
        kill(line)
        end(line.home, "one")
        assert not run.folder.exists()
        assert line("up", "--json").status == 0
        with pytest.raises(FileNotFoundError):
            ask(run, "/acme/one")


def test_the_end_of_a_run_closes_its_streams_and_removes_its_socket(
    line: CommandLine, provider: tuple[Provider, str]
) -> None:
    script, url = provider
    declare(line, url)
    with background(line):
        ended, goes_on = (begin(line.home, "acme", run=name) for name in ("one", "two"))
        with contextlib.closing(SocketClient(ended)) as one, contextlib.closing(SocketClient(goes_on)) as two:
            streams = []
            for client in (one, two):
                client.request("GET", "/acme/stream")
                streams.append(client.getresponse())
                assert streams[-1].readline() == b"data: first\n"
            end(line.home, "one")
            with pytest.raises((IncompleteRead, ConnectionError)):
                streams[0].read()
            until(lambda: not ended.folder.exists())
            script.more.set()
            assert b"second" in streams[1].read()
        with pytest.raises(FileNotFoundError):
            ask(ended, "/acme/one")
        assert ask(goes_on, "/acme/one")[0] == 200


def test_a_runs_placeholder_and_another_runs_socket(line: CommandLine, provider: tuple[Provider, str]) -> None:
    script, url = provider
    declare(line, url)
    with background(line) as about:
        one, two = (begin(line.home, "acme", run=name) for name in ("one", "two"))
        shown = one.placeholders[ref("acme")][""]
        status, body = ask(two, "/acme/one", Authorization=f"Bearer {shown}")
        assert (status, json.loads(body)["error"]["code"]) == (403, "foreign_credential")
        for at in (about["port"], about["socket"]):
            with socket.socket(socket.AF_INET if isinstance(at, int) else socket.AF_UNIX) as client:
                client.connect(("127.0.0.1", at) if isinstance(at, int) else at)
                client.sendall(f"GET /acme/one HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {shown}\r\n\r\n".encode())
                assert client.recv(100).startswith(b"HTTP/1.1 401 ")
    assert not script.seen


# --- clients as they are -----------------------------------------------------------------------


def inside(run: BegunRun, proxy: str, folder: Path) -> Access:
    """Give what a tool in the run's sandbox would be told: the forwarder, and the run's own authority."""
    ca_file = folder / "run-ca.pem"
    ca_file.write_text(run.certificate)
    environ = {"HTTPS_PROXY": proxy, "https_proxy": proxy, "NO_PROXY": "", **trusting(ca_file)}
    return Access(base_url="https://github.com", key=run.placeholders[ref("github")]["GH_TOKEN"], environ=environ)


@pytest.mark.parametrize("shows", ["nothing", "a placeholder"])
def test_git_clones_and_pushes_in_a_run(
    shows: str, gateway: GatewayProcess, upstreams: Upstreams, workplace: Workplace
) -> None:
    name = f"owner/{secrets.token_hex(4)}.git"
    bare = create(upstreams.git_folder, name, {"README": "begin\n"})
    home = gateway.valetkey.home
    run = begin(home, "github", run=f"git-{secrets.token_hex(4)}")
    try:
        with forwarded(run) as proxy:
            access = inside(run, proxy, workplace.folder)
            environ = {n: v for n, v in git_environ(workplace.home).items() if n != "PATH"}
            basic = base64.b64encode(f"x-access-token:{access.key}".encode()).decode()
            more = ["-c", f"http.extraHeader=Authorization: Basic {basic}"] if shows != "nothing" else []

            def git(*words: str) -> None:
                done = workplace.run(["git", *more, *words], access, environ)
                assert done.status == 0, done.err

            git("clone", "-q", f"{access.base_url}/{name}", "work")
            work = workplace.folder / "work"
            (work / "new").write_text("new\n")
            git("-C", "work", "add", ".")
            git("-C", "work", "commit", "-q", "-m", "new")
            git("-C", "work", "push", "-q", "origin", "main")
    finally:
        end(home, run.id)
    assert bare.git("log", "--format=%s", "main").split("\n") == ["new", "begin", ""]
    door = upstreams["github"].door
    requests = upstreams["github"].server.requests
    assert requests
    assert all(door.opens(request) for request in requests)
    assert not any("vkp_" in request.head for request in requests)
    assert workplace.holds(door.key) == []


def test_curl_in_a_run(gateway: GatewayProcess, upstreams: Upstreams, workplace: Workplace) -> None:
    home = gateway.valetkey.home
    run = begin(home, "github", "mirror", run=f"curl-{secrets.token_hex(4)}")
    mirror = upstreams["mirror"]
    try:
        with forwarded(run) as proxy:
            access = inside(run, proxy, workplace.folder)

            def curl(*words: str) -> tuple[str, str]:
                done = workplace.run(
                    ["curl", "-sS", "--http1.1", "-w", "\n%{http_code} %{http_connect}", *words], access
                )
                body, _, status = done.out.rpartition("\n")
                return status, body

            shown = run.placeholders[ref("mirror")][""]
            assert curl("-H", f"Authorization: Bearer {shown}", mirror.url)[0] == "200 200"
            assert curl(mirror.url)[0] == "200 200"
            for brought in (f"Bearer {secrets.token_hex(20)}", f"Bearer {access.key}"):
                status, body = curl("-H", f"Authorization: {brought}", mirror.url)
                assert status == "403 200"
                assert json.loads(body)["error"]["code"] in ("foreign_credential", "not_granted")
            # A host that nobody granted, and the machine itself, which is reached without a proxy.
            assert curl("https://example.com/")[0] == "000 403"
            assert curl(f"https://127.0.0.1:{upstreams['vault'].server.port}/")[0] == "000 403"
            assert workplace.run(["curl", "-sS", "-k", "--noproxy", "*", upstreams["vault"].url], access).status == 0
    finally:
        end(home, run.id)
    assert all(mirror.door.opens(request) for request in mirror.server.requests)
    assert len(mirror.server.requests) == 2
    assert workplace.holds(mirror.door.key) == []

"""The gateway's process through the command line: it starts once, is found, ends well, and comes back as it was."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine
from tests.support.forking import start_child, wait_for
from tests.support.gateway_process import about, ask, background, declare, end, ended, kill, make_key, until
from valetkey import serving
from valetkey.testing.command_line import PATIENCE_SECONDS
from valetkey.testing.local_server import Answer, LocalServer, Received

NOBODY = 65534
DOCS = Path(__file__).parents[2] / "docs" / "cli.md"


@pytest.fixture
def line(home: Path) -> Iterator[CommandLine]:
    line = CommandLine(home=home)
    yield line
    end(line)


def foreground(line: CommandLine, *words: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "valetkey", "serve", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**line.environ, **more},
    )


# --- up and down -----------------------------------------------------------------------------


def test_up_says_where_it_runs_and_a_second_one_changes_nothing(line: CommandLine) -> None:
    first = line("up", "--json").json
    assert first["result"] == "started"
    assert first["url"].startswith("http://127.0.0.1:")
    second = line("up", "--json").json
    assert (second["result"], second["pid"]) == ("running", first["pid"])
    assert f"runs already: {first['url']}" in line("up").out
    told = line("status", "--json").json
    assert {key: told["gateway"][key] for key in ("url", "pid", "version")} == {
        key: first[key] for key in ("url", "pid", "version")
    }
    assert told["web"] is None
    with socket.create_connection(("127.0.0.1", first["port"]), PATIENCE_SECONDS):
        pass
    assert line("down", "--json").json == {"result": "stopped"}
    until(lambda: ended(first["pid"]))
    assert line("down", "--json").json == {"result": "not-running"}
    assert line("status", "--json").json["gateway"] is None
    assert "does not run" in line("status").out
    again = line("up", "--json").json
    assert (again["result"], again["pid"] != first["pid"]) == ("started", True)


def test_it_leaves_nothing_but_locks_and_its_log(line: CommandLine, home: Path) -> None:
    with background(line):
        line("down")
    assert sorted(os.listdir(home / "run")) == [serving.LOCK, serving.LOG, serving.STARTING]


def test_however_many_start_it_at_once_one_runs(line: CommandLine) -> None:
    with ThreadPoolExecutor(5) as pool:
        found = [done.json for done in pool.map(lambda _: line("up", "--json"), range(5))]
    assert sorted(one["result"] for one in found) == ["running"] * 4 + ["started"]
    assert len({one["pid"] for one in found}) == 1


def test_one_of_another_version_is_replaced(line: CommandLine, home: Path) -> None:
    with background(line) as old:
        file = home / "run" / serving.ABOUT
        file.write_text(json.dumps({**json.loads(file.read_text()), "version": "0.0.1"}))
        assert "version 0.0.1" in line("doctor", "--offline").out
        new = line("up", "--json").json
        assert (new["result"], new["version"]) == ("restarted", old["version"])
        assert new["pid"] != old["pid"]
        assert ended(old["pid"])


def test_a_killed_one_is_seen_as_such_at_once_and_the_next_takes_its_place(line: CommandLine, home: Path) -> None:
    with background(line) as old:
        kill(line)
        assert (home / "run" / serving.CONTROL).exists()  # what it left
        assert line("status", "--json").json["gateway"] is None
        for words in (("approvals", "list"), ("unlock",)):
            done = line(*words)
            assert (done.status, "valetkey up" in done.err) == (1, True), words
        assert line("down", "--json").json == {"result": "not-running"}
        new = line("up", "--json").json
        assert (new["result"], new["pid"] != old["pid"]) == ("started", True)


def test_one_that_is_stopped_is_told_and_ended_with_force(line: CommandLine) -> None:
    with background(line) as running:
        os.kill(running["pid"], signal.SIGSTOP)
        done = line("status", "--json")
        assert done.json["gateway"]["keys"] is None
        assert "does not answer" in done.err
        os.kill(running["pid"], signal.SIGCONT)
        assert line("status", "--json").json["gateway"]["keys"] == 0


def test_a_port_that_is_taken_names_the_setting(line: CommandLine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for done in (line("serve", "--port", port), line("up", environ={"VALETKEY_GATEWAY_PORT": port})):
            assert done.status == 1
            assert f"port {port}" in done.err
            assert "gateway.port" in done.err
        assert not serving.is_alive(str(line.home))
        assert f"port {port}" in line("doctor", "--offline", environ={"VALETKEY_GATEWAY_PORT": port}).out


def test_an_address_that_is_not_ours_names_the_setting(line: CommandLine) -> None:
    done = line("serve", "--host", "192.0.2.1", "--port", "0")
    assert (done.status, "gateway.host" in done.err) == (1, True)


def test_what_keeps_it_from_starting_is_told_by_up(line: CommandLine, home: Path) -> None:
    (home / "config.toml").touch(mode=0o600)
    (home / "config.toml").write_text("[gateway]\nport = 'http'\n")
    done = line("up", environ={"VALETKEY_GATEWAY_PORT": ""})
    assert (done.status, "config.toml:2: gateway.port" in done.err) == (2, True)


# --- in the background -----------------------------------------------------------------------


def test_it_is_nobodys_child_and_holds_nothing_of_whoever_started_it(line: CommandLine, home: Path) -> None:
    inherited, _ = pair = os.pipe()
    ours = os.readlink(f"/proc/self/fd/{inherited}")
    done = subprocess.run(
        [sys.executable, "-m", "valetkey", "up", "--json"],
        env=line.environ,
        capture_output=True,
        check=True,
        pass_fds=(inherited,),
        timeout=PATIENCE_SECONDS,  # its pipes are let go of, or this would wait for it
    )
    for descriptor in pair:
        os.close(descriptor)
    pid = json.loads(done.stdout)["pid"]
    process = Path(f"/proc/{pid}")
    session = process.joinpath("stat").read_text().rpartition(")")[2].split()
    parent, of_session, terminal = int(session[1]), int(session[3]), int(session[4])
    assert parent not in (os.getpid(), pid)
    assert of_session != os.getsid(0)
    assert of_session != pid  # it leads no session, so no terminal becomes its own
    assert terminal == 0
    assert os.readlink(process / "cwd") == "/"
    files = {os.readlink(link) for link in process.joinpath("fd").iterdir()}
    assert [os.readlink(process / "fd" / str(number)) for number in range(3)] == ["/dev/null"] * 3
    assert ours not in files
    assert str(home / "run" / serving.STARTING) not in files
    assert "Umask:\t0077\n" in process.joinpath("status").read_text()
    assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)


def test_no_module_is_taken_from_the_folder_that_we_are_in(line: CommandLine, tmp_path: Path) -> None:
    trap = tmp_path / "project"
    trap.mkdir()
    (trap / "uvicorn.py").write_text("raise SystemExit('taken from here')\n")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "valetkey", "up", "--json"],
        env=line.environ,
        cwd=trap,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("umask", [0, 0o777])
def test_every_file_has_its_mode_whatever_the_umask_is(
    line: CommandLine, home: Path, server: LocalServer, umask: int
) -> None:
    declare(line, server.url)
    done = subprocess.run(
        [sys.executable, "-m", "valetkey", "up"], env=line.environ, umask=umask, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ask(line, make_key(line))
    until((home / "trace.db").exists)
    for path in home.rglob("*"):
        kind, mode = stat.S_IFMT(path.lstat().st_mode), stat.S_IMODE(path.lstat().st_mode)
        if path.is_relative_to(home / "providers"):
            continue  # the test's own
        # The authority's certificate is for every tool to read.
        wanted = 0o700 if kind == stat.S_IFDIR else 0o644 if path.name == "ca.pem" else 0o600
        assert mode == wanted, path


def test_a_home_with_a_long_path_works_as_any_other(tmp_path: Path, server: LocalServer) -> None:
    home = tmp_path / ("long" * 30)
    home.mkdir(mode=0o700)
    line = CommandLine(home=home)
    with background(line) as running:
        declare(line, server.url)
        folder = Path(running["socket"]).parent
        assert folder.parent == Path("/tmp")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert line("status", "--json").json["gateway"]["keys"] == 0
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(running["socket"])
        assert line("down").status == 0
        assert not folder.exists()
    shutil.rmtree(home)


def test_it_ends_when_its_home_is_gone(line: CommandLine, home: Path) -> None:
    with background(line) as running:
        shutil.rmtree(home)
        until(lambda: ended(running["pid"]))
    home.mkdir(mode=0o700, exist_ok=True)


def test_unused_it_ends_by_itself_but_not_while_a_valet_key_counts(line: CommandLine, server: LocalServer) -> None:
    declare(line, server.url)
    key = make_key(line)
    running = foreground(line, "--idle-exit", "0.001")
    with running:
        until(lambda: serving.running(str(line.home)) is not None)
        assert ask(line, key).status_code == 200
        assert line("key", "revoke", key).status == 0
        assert running.wait(PATIENCE_SECONDS) == 0


# --- what comes to its end ---------------------------------------------------------------------


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_lets_what_is_under_way_end_first(line: CommandLine, number: signal.Signals, status: int) -> None:
    go_on = threading.Event()

    def respond(request: Received) -> Answer:
        assert go_on.wait(PATIENCE_SECONDS)
        return Answer(body=b"served")

    with LocalServer(respond) as server, ThreadPoolExecutor(1) as pool:
        declare(line, server.url)
        key = make_key(line)
        with foreground(line, "--port", "0") as running:
            assert running.stdout is not None
            assert running.stdout.readline().startswith("Valetkey ")
            answer = pool.submit(ask, line, key)
            server.wait_for(1)
            port = about(line)["port"]
            running.send_signal(number)
            until(lambda: _refused(port))  # nothing new is taken
            assert running.poll() is None
            go_on.set()
            assert answer.result().text == "served"
            assert running.wait(PATIENCE_SECONDS) == status


def test_a_second_signal_ends_it_at_once(line: CommandLine) -> None:
    go_on = threading.Event()

    def respond(request: Received) -> Answer:
        go_on.wait(PATIENCE_SECONDS)
        return Answer(body=b"served")

    with LocalServer(respond) as server, ThreadPoolExecutor(1) as pool:
        declare(line, server.url)
        key = make_key(line)
        with foreground(line, "--port", "0") as running:
            until(lambda: serving.running(str(line.home)) is not None)
            answer = pool.submit(ask, line, key)
            server.wait_for(1)
            port = about(line)["port"]
            running.terminate()
            until(lambda: _refused(port))
            running.terminate()
            assert running.wait(PATIENCE_SECONDS) == 0
            assert answer.exception() is not None
            go_on.set()


def test_down_waits_for_what_is_under_way_unless_it_is_told_not_to(line: CommandLine) -> None:
    go_on = threading.Event()

    def respond(request: Received) -> Answer:
        go_on.wait(PATIENCE_SECONDS)
        return Answer(body=b"served")

    with LocalServer(respond) as server, ThreadPoolExecutor(2) as pool, background(line):
        declare(line, server.url)
        key = make_key(line)
        answer = pool.submit(ask, line, key)
        server.wait_for(1)
        port = about(line)["port"]
        done = pool.submit(line, "down")
        until(lambda: _refused(port))
        assert not done.done()
        assert line("down", "--now").status == 0
        assert done.result().status == 0
        assert answer.exception() is not None
        go_on.set()


def _refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS).close()
    except ConnectionRefusedError:
        return True
    return False


def test_killed_and_started_again_it_serves_as_before_and_nothing_in_between(
    line: CommandLine, server: LocalServer, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(f'default = "deny"\n[[rule]]\nallow = "GET {server.url.partition("//")[2]}/models"\n')
    declare(line, server.url)
    with background(line) as first:
        key, revoked = make_key(line, "--policy", str(policy)), make_key(line)
        line("key", "revoke", revoked)
        wanted = {
            ("GET", "/acme/models", key): 200,
            ("GET", "/acme/files", key): 403,
            ("GET", "/acme/models", revoked): 401,
        }
        for (method, path, used), status in wanted.items():
            assert ask(line, used, path, method=method).status_code == status
        kill(line)
        until(lambda: _refused(first["port"]))
        line("up", environ={"VALETKEY_GATEWAY_PORT": str(first["port"])})
        assert about(line)["port"] == first["port"]
        for (method, path, used), status in wanted.items():
            assert ask(line, used, path, method=method).status_code == status


# --- who may ask -----------------------------------------------------------------------------


def test_another_user_reaches_nothing(line: CommandLine, home: Path) -> None:
    """Only root can play the other user. Others see in test_gateway_control.py that such a one gets no answer."""
    if os.geteuid() != 0:
        return
    with background(line) as running:

        def knock() -> None:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(PATIENCE_SECONDS)
                connection.connect(running["control"])
                connection.sendall(b"POST /stop HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
                assert connection.recv(1) == b""

        # The folders alone keep it out …
        child = start_child(knock)
        assert wait_for(child) == 1
        # … and where they do not, the socket hangs up.
        opened = [home / "run", *[p for p in (home, *home.parents) if p.stat().st_mode & 0o77 == 0]]
        before = {path: path.stat().st_mode for path in opened}
        try:
            for path in opened:
                path.chmod(0o711)
            (home / "run" / serving.CONTROL).chmod(0o666)
            child = start_child(lambda: _hung_up_on(running["control"]))
            assert wait_for(child) == 0
        finally:
            for path, mode in before.items():
                path.chmod(mode)
        assert about(line)["pid"] == running["pid"]


def _hung_up_on(path: str) -> None:
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_SECONDS)
        connection.connect(path)
        try:
            connection.sendall(b"POST /stop HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
            assert connection.recv(1) == b""
        except (BrokenPipeError, ConnectionResetError):
            pass


def test_serve_in_the_foreground_says_where_and_core_dumps_are_off(line: CommandLine) -> None:
    with foreground(line, "--json", "--port", "0") as running:
        until(lambda: serving.running(str(line.home)) is not None)
        assert resource.prlimit(running.pid, resource.RLIMIT_CORE) == (0, 0)
        done = line("serve", "--port", "0")
        assert (done.status, f"process {running.pid}" in done.err) == (1, True)
        running.terminate()
        out, _ = running.communicate(timeout=PATIENCE_SECONDS)
        assert list(json.loads(out)) == [
            "version", "pid", "url", "port", "socket", "control", "started_at", "locked",
        ]  # fmt: skip


# --- approvals -------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "status"), [("approve", 200), ("deny", 403)])
def test_a_held_request_waits_for_a_person(
    line: CommandLine, server: LocalServer, tmp_path: Path, answer: str, status: int
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(f'default = "allow"\n[[rule]]\nask = "POST {server.url.partition("//")[2]}/**"\n')
    declare(line, server.url)
    with background(line), ThreadPoolExecutor(1) as pool:
        assert line("approvals", "list", "--json").json["approvals"] == []
        assert "Nothing waits" in line("approvals", "list").out
        key = make_key(line, "--policy", str(policy))
        asked = pool.submit(ask, line, key, "/acme/images/hold", method="POST")
        until(lambda: line("status", "--json").json["gateway"]["approvals"] == 1)
        (waiting,) = line("approvals", "list", "--json").json["approvals"]
        assert (waiting["account"], waiting["method"]) == ("acme@default", "POST")
        assert f"each `{{{', '.join(waiting)}}}`" in DOCS.read_text()
        with line.terminal("approvals", "list", environ={"COLUMNS": "40"}) as narrow:
            assert narrow.end() == 0
        assert waiting["id"] in narrow.shown
        assert f"POST {waiting['url']}" in narrow.shown, "nothing of what is decided on is cut"
        assert server.calls("/images/hold") == []
        done = line("approvals", answer, waiting["id"], "--json")
        assert list(done.json) == ["id", "approved", "scope", "by"]
        assert done.json["approved"] is (answer == "approve")
        assert asked.result().status_code == status
        again = line("approvals", answer, waiting["id"])
        assert (again.status, "approvals list" in again.err) == (1, True)
        assert f"POST {waiting['url']}" in line("approvals", "list", "--settled").out

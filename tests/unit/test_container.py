"""What an engine is told, what of a run it never sees, and what is missing, named with the command that mends it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.containers import IMAGE, NO_PYTHON, Podman
from tests.support.gateway_process import until
from tests.support.sandboxed import sandbox_here
from valetkey.errors import RunError, SandboxFailed, SandboxUnavailable, UsageError
from valetkey.sandbox import Limits, Mount
from valetkey.sandboxes import inside, sandbox_for
from valetkey.sandboxes.container import Container
from valetkey.sandboxes.engines import DOCKER, PODMAN, Engine, identity
from valetkey.testing.place import PYTHON, Gateway, Place, processes_with, sandbox_place
from valetkey.workspace import Owner

# All of design.md's and agents.md's, for either engine.
PROMISED = (
    "--rm --pull=never --network=none --read-only --cap-drop=all --security-opt=no-new-privileges --cgroupns=private"
    " --log-driver=none --entrypoint=python3 --pids-limit=77 --ulimit=fsize=5:5 --ulimit=core=0:0"
)


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with sandbox_place(sandbox_here("podman", request)) as made:
        yield made


def client(folder: Path, script: str) -> str:
    """Write a stand-in for an engine's client, which is where what is ours ends."""
    path = folder / "client"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def told(folder: Path, engine: Engine, **changes: object) -> tuple[list[str], dict[str, object]]:
    """Give the words that the engine is started with, and the profile that one of them names."""
    recording = client(
        folder,
        f'printf "%s\\0" "$@" > {folder}/words\n'
        f'for word; do case "$word" in *seccomp=*) cat "${{word#*seccomp=}}" > {folder}/profile;; esac; done\nexit 125',
    )
    with sandbox_place(Container(engine, image="an/image:1", run="0123456789ab", program=recording)) as place:
        spec = place.spec("true", **changes)  # type: ignore[arg-type]  # fields of a Spec
        with pytest.raises(SandboxFailed, match="125"):
            place.run(spec)
    words = (folder / "words").read_text().split("\0")[:-1]
    return words, json.loads((folder / "profile").read_text())


@pytest.mark.parametrize("engine", [DOCKER, PODMAN], ids=lambda engine: engine.id)
def test_the_command_line_has_every_measure(tmp_path: Path, engine: Engine) -> None:
    words, profile = told(tmp_path, engine, limits=Limits(processes=77, file_bytes=5, memory_bytes=1 << 20))
    assert [word for word in PROMISED.split() if word not in words] == []
    assert [word for word in engine.options if word not in words] == []
    assert "--label=valetkey.run=0123456789ab" in words
    assert words[words.index("an/image:1") - 1] == "--entrypoint=python3"
    assert profile["defaultAction"] == "SCMP_ACT_ALLOW"
    # Nothing that would let it out: no privileges, no network or namespace of the host, no port.
    assert not [word for word in words if word.startswith(("--privileged", "--cap-add", "--device", "-p", "--publish"))]
    assert not [word for word in words if word.endswith("=host")]


@pytest.mark.parametrize("engine", [DOCKER, PODMAN], ids=lambda engine: engine.id)
def test_neither_command_nor_variables_are_told_to_the_engine(tmp_path: Path, engine: Engine) -> None:
    canary = secrets.token_hex(16)
    words, _ = told(tmp_path, engine, environment={"TOKEN": canary})
    assert canary not in " ".join(words)
    assert "true" not in words


def test_a_path_with_commas_and_quotes_is_mounted(place: Place) -> None:
    odd = place.root / 'a, "b":c=d'
    odd.mkdir()
    (odd / "there").write_text("seen")
    odd.chmod(0o755)
    assert place.run(place.spec("cat", "/mnt/odd/there", mounts=(Mount(source=odd, target="/mnt/odd"),))).out == "seen"


def test_the_forwarder_loads_nothing_written_in_python_but_os() -> None:
    """An image often has no .pyc files, and to compile what `socket` imports took a fifth of a start."""
    code = (
        "import sys; before = set(sys.modules); sys.path[:0] = [sys.argv[1]]; import forward\n"
        "made = {name: getattr(sys.modules[name], '__file__', None) or '' for name in set(sys.modules) - before}\n"
        "print(*sorted(name for name, path in made.items() if path.endswith('.py')))"
    )
    folder = str(Path(inside.__file__).parent)
    done = subprocess.run([PYTHON, "-I", "-S", "-B", "-c", code, folder], capture_output=True, text=True, check=True)
    of_os = {"os", "os.path", "stat", "posixpath", "genericpath", "_collections_abc"}
    assert set(done.stdout.split()) - of_os == {"forward"}


# --- what is missing --------------------------------------------------------------------------


def test_a_missing_program_is_named(place: Place) -> None:
    missing = Container(PODMAN, image=IMAGE, program="no-such-podman")
    for attempt in (missing.check, lambda: missing.start(place.spec("true"), stdin=0, stdout=1, stderr=2)):
        with pytest.raises(SandboxUnavailable, match="podman is not installed") as raised:
            attempt()
        assert "apt install podman" in raised.value.hint


@pytest.mark.parametrize("name", ["docker", "podman"])
def test_without_an_image_it_asks_for_one(name: str) -> None:
    with pytest.raises(UsageError, match="needs an image") as raised:
        sandbox_for(name).check()
    assert "--image" in raised.value.hint


@pytest.mark.parametrize("image", ["--privileged", "a b", "-v/:/x", "a\nb"])
def test_what_is_no_name_of_an_image_is_refused(image: str) -> None:
    with pytest.raises(UsageError, match="no name of an image"):
        sandbox_for("podman", image=image).check()


def test_bubblewrap_takes_no_image() -> None:
    with pytest.raises(UsageError, match="takes no image"):
        sandbox_for("bubblewrap", image=IMAGE)


def test_a_missing_image_is_never_pulled(podman: Podman) -> None:
    missing = sandbox_for("podman", image="localhost/nothing-of-this-name")
    with pytest.raises(SandboxUnavailable, match="no image localhost/nothing-of-this-name") as raised:
        missing.check()
    assert "podman pull localhost/nothing-of-this-name" in raised.value.hint
    with sandbox_place(missing) as place, pytest.raises(SandboxFailed, match="image"):
        place.run(place.spec("true"))
    assert podman.containers() == []


def test_an_image_without_python_is_named(podman: Podman) -> None:
    made = sandbox_for("podman", image=NO_PYTHON)
    with sandbox_place(made) as place, pytest.raises(SandboxFailed, match="has no python3") as raised:
        place.run(place.spec("true"))
    assert "python3-minimal" in raised.value.hint
    assert podman.containers() == []


@pytest.mark.skipif(shutil.which("docker") is None, reason="there is no docker client on this machine")
def test_a_docker_that_does_not_run_is_told_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    with pytest.raises(SandboxUnavailable, match=rf"does not work here: .*{tmp_path}/docker.sock") as raised:
        sandbox_for("docker", image=IMAGE).check()
    assert "systemctl start docker" in raised.value.hint


@pytest.mark.parametrize("option", ["name=rootless", "name=userns"])
def test_a_docker_in_which_files_are_nobodys_is_refused(tmp_path: Path, option: str) -> None:
    program = client(tmp_path, f"""test "$1" = info && echo '["name=seccomp","{option}"]' || exit 0""")
    with pytest.raises(SandboxUnavailable, match=option):
        Container(DOCKER, image=IMAGE, program=program).check()


def test_a_container_that_does_not_come_up_is_told_in_the_engines_words(tmp_path: Path) -> None:
    program = client(tmp_path, "echo 'WARN: slow' >&2; echo 'Error: statfs /x: no such file' >&2; exit 126")
    made = Container(PODMAN, image=IMAGE, program=program)
    with sandbox_place(made) as place, pytest.raises(SandboxFailed, match="statfs"):
        place.run(place.spec("true"))


# --- whom it runs as --------------------------------------------------------------------------


def test_root_gives_it_to_the_owner_of_the_workspace() -> None:
    who = identity(PODMAN, Owner(uid=1234, gid=5678))
    assert (who.uid, who.gid, who.options) == (1234, 5678, ("--user=1234:5678",))


def test_a_daemon_is_told_who_we_are() -> None:
    assert identity(DOCKER, None).options == (f"--user={os.getuid()}:{os.getgid()}",)


def test_a_podman_of_ones_own_keeps_the_number_where_it_has_further_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "newuidmap").write_text("#!/bin/sh\n")
    (tmp_path / "newuidmap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    subuid = tmp_path / "subuid"
    assert identity(PODMAN, None, subuid=subuid).options == ("--user=0:0",)
    subuid.write_text("somebody-else:100000:65536\n")
    assert identity(PODMAN, None, subuid=subuid).options == ("--user=0:0",)
    subuid.write_text(f"{os.getuid()}:100000:65536\n")
    assert identity(PODMAN, None, subuid=subuid).options == ("--userns=keep-id",)


# --- what is left -----------------------------------------------------------------------------


def test_nothing_is_left_on_the_host_while_it_runs(
    place: Place, podman: Podman, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder with its files and its socket is gone once it stands: whatever kills us, nobody finds it."""
    # Of its own, for other tests make such folders at the same time.
    (temporary := place.root / "tmp").mkdir(mode=0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    waiting = place.spec(PYTHON, "-c", "print('up', flush=True); input()", files={"/etc/x": b"file"})
    with place.talking(waiting) as (_, talk):
        assert talk.recv(10) == b"up\n"
        assert list(temporary.iterdir()) == []
        assert len(podman.containers()) == 1
    assert podman.containers() == []


def test_what_runs_the_container_outside_has_no_credential_of_our_shell(
    place: Place, podman: Podman, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = secrets.token_hex(16)
    monkeypatch.setenv("A_CREDENTIAL", canary)
    with place.talking(place.spec(PYTHON, "-c", "print('up', flush=True); input()")) as (_, talk):
        assert talk.recv(10) == b"up\n"
        (name,) = podman.containers()
        around = processes_with(name)
        assert len(around) == 2, "the client and the container's monitor"
        assert [pid for pid in around if canary.encode() in Path(f"/proc/{pid}/environ").read_bytes()] == []


def test_the_engine_keeps_no_variable_and_no_output(place: Place, podman: Podman) -> None:
    canary = secrets.token_hex(16)
    script = f"print('{canary[::-1]}', flush=True); input()"
    with place.talking(place.spec(PYTHON, "-c", script, environment={"TOKEN": canary})) as (_, talk):
        assert talk.recv(100).decode().strip() == canary[::-1]
        assert canary not in podman("inspect", *podman.containers()).stdout
        for path in podman.root.rglob("*"):
            if stat.S_ISREG(path.lstat().st_mode) and path.stat().st_size < 1 << 20 and "/diff/" not in str(path):
                content = path.read_bytes()
                assert canary.encode() not in content, path
                assert canary[::-1].encode() not in content, path


def test_a_client_that_is_killed_takes_nothing_of_the_limits_away(place: Place, podman: Podman) -> None:
    word = secrets.token_hex(8)
    deaf = "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True)\nwhile True: signal.pause()"
    with place.talking(place.spec(PYTHON, "-c", deaf, word, limits=Limits(seconds=10))) as (started, talk):
        assert talk.recv(10) == b"up\n"
        (name,) = podman.containers()
        for client in processes_with(f"--name={name}"):
            os.kill(client, 9)
        assert started.wait() == 137
        assert started.overrun == "time"
    assert processes_with(word) == []
    # The container's monitor clears away what the client would have.
    until(lambda: podman.containers() == [])


def test_clear_removes_what_a_run_left_and_nothing_else(podman: Podman) -> None:
    limits = [f"--ulimit={name}=256:256" for name in ("nofile", "nproc")]
    for name, run in (("left", "aaaaaaaaaaaa"), ("other", "bbbbbbbbbbbb")):
        words = (f"--name={name}", f"--label=valetkey.run={run}", "--network=none", *limits)
        made = podman("run", "-d", *words, IMAGE, "sleep", "600")
        assert made.returncode == 0, made.stderr
    try:
        sandbox_for("podman", run="aaaaaaaaaaaa").clear()
        assert podman.containers() == ["other"]
        sandbox_for("podman", run="aaaaaaaaaaaa").clear()
    finally:
        podman("rm", "--force", "--time=0", "other")


def test_a_run_that_cannot_be_cleared_says_so(tmp_path: Path) -> None:
    program = client(tmp_path, "echo 'Error: no engine' >&2; exit 125")
    with pytest.raises(RunError, match="no engine"):
        Container(PODMAN, run="aaaaaaaaaaaa", program=program).clear()


def test_the_gateway_is_reached_by_few_threads_under_a_small_limit_of_memory(place: Place) -> None:
    """What threads reserve for their stacks counts: the forwarder's must not be what a limit of memory hits first."""
    many = (
        "import socket\n"
        "ends = [socket.create_connection(('127.0.0.1', 3128), timeout=30) for _ in range(50)]\n"
        "for end in ends: end.sendall(b'abc'); end.shutdown(socket.SHUT_WR)\n"
        "print({end.recv(9) for end in ends})"
    )
    with Gateway(place):
        assert place.probe(many, limits=Limits(memory_bytes=100 << 20, seconds=60)).out == "{b'ABC'}\n"

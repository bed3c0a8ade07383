"""Runs with a sandbox that holds nothing back and a gateway that is none: records, order, parent, sweep."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from valetkey.agent import Prepared, Served
from valetkey.audit.recorder import Audit
from valetkey.config import Paths
from valetkey.credential import CredentialRef
from valetkey.errors import (
    AuditUnwritable,
    HomeUnusable,
    NotLoggedIn,
    RecordDamaged,
    RunGoesOn,
    SandboxUnavailable,
    UnknownRun,
    WorkspaceRefused,
)
from valetkey.mcp import Local, Relayed
from valetkey.runs import parent, record
from valetkey.runs.launch import Ready, Wanted, missing_tools, ready, sweep
from valetkey.runs.order import Order
from valetkey.runs.parent import watch
from valetkey.runs.record import Records, Run, save
from valetkey.sandbox import Limits, Mount, Spec
from valetkey.stores.locks import try_lock_file
from valetkey.testing.clock import FakeClock
from valetkey.testing.granting import CERTIFICATE, FakeGranting
from valetkey.testing.sandbox import FakeSandbox

ACME, WORK = CredentialRef(provider="acme", account="default"), CredentialRef(provider="acme", account="work")


class Place:
    """A home with its records, a gateway's side and a sandbox."""

    def __init__(self, folder: Path, clock: FakeClock) -> None:
        self.paths = Paths(home=folder / "home")
        self.records = Records(self.paths, clock)
        self.audit = Audit(self.paths, clock)
        self.granting = FakeGranting(at=folder / "sockets")
        self.sandbox = FakeSandbox()
        self.workspace = folder / "workspace"
        self.workspace.mkdir()

    def ready(self, *command: str, grants: tuple[CredentialRef, ...] = (ACME,), **more: object) -> Ready:
        return ready(
            Wanted(command=command, grants=grants, workspace=self.workspace, **more),  # type: ignore[arg-type]  # any of its fields
            granting=self.granting,
            records=self.records,
            audit=self.audit,
            sandbox=self.sandbox,
            home=self.paths.home,
            system_bundle=b"system\n",
            environ={"TERM": "xterm", "ACME_KEY": "canary", "SSH_AUTH_SOCK": "/run/agent"},
        )


@pytest.fixture
def place(tmp_path: Path, clock: FakeClock) -> Place:
    return Place(tmp_path, clock)


# --- what is kept ----------------------------------------------------------------------------


def test_a_record_is_read_as_it_was_written(place: Place, clock: FakeClock) -> None:
    made = place.ready("sh", "-c", "a b", grants=(ACME, WORK))
    assert place.records.find(made.run.id) == made.run
    assert place.records.find(made.run.id[:6]) == made.run
    assert place.records.state(made.run) == "running"
    clock.advance(5)
    ended = place.records.end(made.run, 3)
    made.lock.release()
    assert place.records.all() == [ended]
    assert (ended.exit_status, ended.ended_at, place.records.state(ended)) == (3, clock.now(), "ended")


def test_servers_are_where_the_gateway_is_and_their_accounts_are_no_grants(place: Place) -> None:
    servers = (
        Relayed(name="linear", url="https://mcp.linear.example/mcp", grant=WORK, transport="sse"),
        Local(name="files", command=("npx", "files")),
    )
    made = place.ready("true", servers=servers)
    assert (made.run.mcp, made.run.grants) == (("linear", "files"), ("acme@default",))
    assert place.records.find(made.run.id) == made.run
    told = json.loads(made.order.spec.files["/etc/valetkey/mcp.json"])
    assert told["mcpServers"] == {
        "linear": {"type": "sse", "url": "http://127.0.0.1:3128/mcp/linear"},
        "files": {"type": "stdio", "command": "npx", "args": ["files"]},
    }
    assert "placeholder-of-work" not in made.order.spec.environment.values()
    assert "/etc/valetkey/mcp.json" not in place.ready("true").order.spec.files


def test_what_a_person_named_is_kept_but_no_value_of_a_variable(place: Place, tmp_path: Path) -> None:
    mine, program = (Mount(source=tmp_path / name, target=f"/mnt/{name}") for name in ("mine", "program"))
    made = place.ready(
        "true",
        mounts=(mine,),
        program=(program,),
        limits=Limits(processes=7),
        variables={"NAME": "of-the-shell", "TYPED": "a-word"},
        named=("NAME", "TYPED="),
    )
    assert made.order.spec.mounts == (mine, program)
    kept = place.records.find(made.run.id)
    assert (kept.mounts, kept.variables, kept.limits) == ((mine,), ("NAME", "TYPED="), Limits(processes=7))
    text = (place.records.at(kept) / record.RECORD).read_text()
    assert not [word for word in ("of-the-shell", "a-word") if word in text]


def test_folders_and_files_of_a_run_are_for_nobody_else(place: Place) -> None:
    before = os.umask(0)
    try:
        made = place.ready("true")
    finally:
        os.umask(before)
    at = place.records.at(made.run)
    modes = {path.relative_to(at.parent).name: stat.S_IMODE(path.stat().st_mode) for path in (at, *at.rglob("*"))}
    kept = {made.run.id: 0o700, "run.json": 0o600, "lock": 0o600, "home": 0o700}
    assert modes == kept | {".config": 0o700, "acme": 0o700, "key": 0o600}


def test_a_run_that_is_not_there_or_not_clear_is_told(place: Place) -> None:
    with pytest.raises(UnknownRun, match="there is no run 'abc'"):
        place.records.find("abc")
    run = place.ready("true").run
    with pytest.raises(UnknownRun, match="there is no run"):
        place.records.find(run.id[:3])
    with pytest.raises(UnknownRun):
        place.records.find("../../etc")


def test_a_record_that_cannot_be_read_is_told_and_left(place: Place) -> None:
    run = place.ready("true").run
    path = place.records.at(run) / record.RECORD
    path.write_text("{")
    with pytest.raises(RecordDamaged):
        place.records.find(run.id)
    assert place.records.all() == []
    assert path.read_text() == "{"


def test_a_run_that_goes_on_is_not_removed_and_one_that_has_ended_is(place: Place) -> None:
    made = place.ready("true")
    with pytest.raises(RunGoesOn):
        place.records.remove(made.run)
    made.lock.release()
    place.records.remove(made.run)
    assert list(place.records.folder.iterdir()) == []


def test_what_is_old_or_too_much_is_outdated_but_for_what_goes_on_or_is_needed(place: Place, clock: FakeClock) -> None:
    made = [place.ready("true").run for _ in range(5)]
    old, home_of_another, large, other = (place.records.end(run, 0) for run in made[:4])
    goes_on = replace(made[4], home_of=home_of_another.id)
    save(place.records.at(goes_on), goes_on)
    save(place.records.at(large), replace(large, bytes=10**9))
    room = {"keep_days": 30, "most_bytes": 2 * 10**9}
    assert place.records.outdated(**room) == []
    clock.advance(31 * 86400)
    assert {run.id for run in place.records.outdated(**room)} == {old.id, large.id, other.id}
    young = replace(other, ended_at=clock.now(), created_at=clock.now())
    save(place.records.at(young), young)
    assert young.id not in {run.id for run in place.records.outdated(**room)}
    assert {run.id for run in place.records.outdated(keep_days=100, most_bytes=10**8)} <= {old.id, large.id}


# --- making it ready -------------------------------------------------------------------------


def test_the_order_has_placeholders_the_way_out_and_nothing_of_the_host(place: Place) -> None:
    order = place.ready("true", grants=(WORK, ACME), variables={"MINE": "1", "HTTPS_PROXY": "http://elsewhere"}).order
    environment = order.spec.environment
    assert environment["ACME_KEY"] == "placeholder-of-work", "the account that was granted first"
    assert environment["HTTPS_PROXY"] == environment["http_proxy"] == "http://127.0.0.1:3128"
    assert environment["MINE"] == "1"
    assert environment["TERM"] == "xterm"
    assert "SSH_AUTH_SOCK" not in environment
    assert "canary" not in order.as_json()
    assert order.spec.files["/etc/valetkey/ca.pem"] == CERTIFICATE.encode()
    assert order.spec.files["/etc/valetkey/ca-bundle.pem"] == b"system\n" + CERTIFICATE.encode()
    assert environment["SSL_CERT_FILE"] == "/etc/valetkey/ca-bundle.pem"
    assert order.spec.gateway == place.granting.at / order.run


def test_files_that_accounts_want_are_the_first_ones_or_all_where_they_add_up(place: Place) -> None:
    made = place.ready("true", grants=(WORK, ACME))
    files = made.order.spec.files
    assert files["/etc/acme"] == b"added-of-work\nadded-of-default"
    assert files["/etc/acme.d/it"] == b"alone-of-work"
    assert files["/etc/valetkey/ca.pem"] == CERTIFICATE.encode(), "what a run stands on is no account's to say"
    assert (place.records.home(made.run) / ".config/acme/key").read_text() == "placeholder-of-work"
    assert not [path for path in files if path.startswith("~")]


def test_a_run_that_goes_on_has_its_own_placeholders_in_the_old_home(place: Place) -> None:
    first = place.ready("it", grants=(WORK,))
    first.lock.release()
    second = place.ready("it", grants=(ACME,), home_of=first.run.id)
    key = place.records.home(second.run) / ".config/acme/key"
    assert (key.read_text(), stat.S_IMODE(key.stat().st_mode)) == ("placeholder-of-default", 0o600)


@pytest.mark.parametrize("left", [".config", ".config/acme"])
def test_a_link_that_a_run_left_in_its_home_leads_no_file_out_of_it(place: Place, tmp_path: Path, left: str) -> None:
    first = place.ready("it")
    first.lock.release()
    home, outside = place.records.home(first.run), tmp_path / "outside"
    outside.mkdir()
    shutil.rmtree(home / left)
    (home / left).symlink_to(outside)
    with pytest.raises(HomeUnusable, match="cannot be used"):
        place.ready("it", home_of=first.run.id)
    assert list(outside.rglob("*")) == []
    assert place.granting.granted == [first.run.id], "what was begun is taken back"


def test_a_link_in_a_files_own_place_is_replaced(place: Place, tmp_path: Path) -> None:
    first = place.ready("it")
    first.lock.release()
    key, outside = place.records.home(first.run) / ".config/acme/key", tmp_path / "outside"
    outside.write_text("mine")
    key.unlink()
    key.symlink_to(outside)
    place.ready("it", home_of=first.run.id)
    assert (outside.read_text(), key.is_symlink()) == ("mine", False)


def test_a_folder_in_a_files_place_is_told_and_left(place: Place) -> None:
    first = place.ready("it")
    first.lock.release()
    folder = place.records.home(first.run) / ".config/acme"
    (folder / "key").unlink()
    (folder / "key").mkdir()
    with pytest.raises(HomeUnusable):
        place.ready("it", home_of=first.run.id)
    assert [path.name for path in folder.iterdir()] == ["key"], "nothing half-written is left"


def test_an_order_is_read_as_it_was_written(place: Place, tmp_path: Path) -> None:
    mounts = (Mount(source=tmp_path, target="/data", read_only=False),)
    order = place.ready(
        "a", "b c", mounts=mounts, limits=Limits(memory_bytes=1, processes=2, seconds=3.5, file_bytes=None)
    ).order
    assert Order.from_json(order.as_json()) == order


def test_what_is_missing_stops_a_run_before_it_starts_and_leaves_nothing(place: Place) -> None:
    place.granting.missing = (ACME, WORK)
    with pytest.raises(NotLoggedIn, match="acme@default, acme@work"):
        place.ready("true", grants=(ACME, WORK))
    assert place.granting.granted == []
    assert list(place.records.folder.iterdir()) == []
    assert place.sandbox.specs == []


def test_a_run_that_cannot_be_recorded_does_not_start(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AuditUnwritable("no room", hint="free some space")

    monkeypatch.setattr(place.audit, "append", refuse)
    with pytest.raises(AuditUnwritable):
        place.ready("true")
    assert place.granting.granted == []
    assert list(place.records.folder.iterdir()) == []


def test_a_sandbox_that_cannot_be_used_is_told_before_anything_is_made(place: Place) -> None:
    place.sandbox.fault = OSError("no")
    with pytest.raises(OSError, match="no"):
        place.ready("true")
    assert place.granting.granted == []
    assert not place.records.folder.exists()


def test_programs_that_a_grant_is_for_are_named_where_they_are_not_there() -> None:
    class Catalogue:
        def get(self, provider: str) -> object:
            return type("P", (), {"tools": {"acme": ("acme-cli", "git"), "bare": ()}[provider]})

    bare = CredentialRef(provider="bare", account="default")
    wanted = Wanted(command=("x",), grants=(ACME, WORK, bare), workspace=Path("/"))

    def missing(wanted: Wanted, *there: str) -> list[tuple[str, str]]:
        class Holding(FakeSandbox):
            def lacking(self, programs: Sequence[str], *, path: str) -> list[str]:
                return [name for name in programs if name not in there]

        return missing_tools(wanted, Catalogue(), Holding())  # type: ignore[arg-type]  # what it uses of a catalogue

    assert missing(wanted) == [("acme", "acme-cli"), ("acme", "git")]
    assert missing(wanted, "git") == [("acme", "acme-cli")]
    assert missing(wanted, "git", "acme-cli") == []
    # An agent is the tool of the account that it uses; what else it is granted has tools of its own.
    assert missing(replace(wanted, agent="it", account=WORK)) == []
    assert missing(replace(wanted, agent="it", account=bare)) == [("acme", "acme-cli"), ("acme", "git")]


# --- an agent's ------------------------------------------------------------------------------


def prepared(home: Path, served: Served) -> Prepared:
    (home / "state").write_text(served.placeholder)
    environment = {"URL": served.base_url, **{f"{name}_TOO": value for name, value in served.variables.items()}}
    return Prepared(environment=environment, without=frozenset({"ACME_KEY"}), files={"/etc/it/settings": b"x"})


def test_an_agent_prepares_its_run_with_the_account_that_it_uses(place: Place) -> None:
    made = place.ready("it", grants=(ACME, WORK), agent="it", account=WORK, method="key", prepare=prepared)
    environment = made.order.spec.environment
    assert environment["URL"] == "http://127.0.0.1:3128/acme@work"
    assert environment["ACME_KEY_TOO"] == "placeholder-of-work"
    assert "ACME_KEY" not in environment, "what it would take in place of its own account"
    assert made.order.spec.files["/etc/it/settings"] == b"x"
    assert (place.records.home(made.run) / "state").read_text() == "file-placeholder-of-work"
    kept = place.records.find(made.run.id)
    assert (kept.agent, kept.account, kept.method) == ("it", "acme@work", "key")


def test_a_run_goes_on_with_the_home_of_an_earlier_one_that_has_ended(place: Place) -> None:
    first = place.ready("it")
    (place.records.home(first.run) / "left").touch()
    with pytest.raises(RunGoesOn, match=first.run.id):
        place.ready("it", home_of=first.run.id)
    assert [run.id for run in place.records.all()] == place.granting.granted == [first.run.id]
    first.lock.release()
    second = place.ready("it", home_of=first.run.id, policy="default = 'allow'", read_only=True, allow=("a.example",))
    assert (second.order.spec.home / "left").exists()
    assert place.records.find(second.run.id) == second.run
    assert (second.run.policy, second.run.read_only, second.run.allow) == ("default = 'allow'", True, ("a.example",))
    with pytest.raises(RunGoesOn, match=second.run.id):
        place.ready("it", home_of=first.run.id)
    second.lock.release()
    place.records.remove(first.run)
    with pytest.raises(UnknownRun, match="home"):
        place.ready("it", home_of=first.run.id)


# --- its parent ------------------------------------------------------------------------------


def test_a_run_keeps_what_it_said_and_how_it_ended(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    made = place.ready("sh", "-c", "echo out; echo err >&2; echo $ACME_KEY > made; exit 7")
    assert watch(made.order, place.sandbox) == 7
    said = capfd.readouterr()
    assert (said.out, said.err) == ("out\n", "err\n")
    assert sorted((made.order.folder / "output.log").read_text().splitlines()) == ["err", "out"]
    assert stat.S_IMODE((made.order.folder / "output.log").stat().st_mode) == 0o600
    assert (place.workspace / "made").read_text() == "placeholder-of-default\n"
    kept = json.loads((made.order.folder / "run.json").read_text())
    assert (kept["exit_status"], kept["pid"]) == (7, os.getpid())


def test_a_signal_that_ended_it_shows_in_its_status(place: Place) -> None:
    assert watch(place.ready("sh", "-c", "kill -9 $$").order, place.sandbox) == 137


def test_a_command_that_cannot_be_started_is_told(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    made = place.ready("no-such-command-anywhere")
    assert watch(made.order, place.sandbox) == 125
    assert "valetkey: error:" in capfd.readouterr().err
    assert place.records.find(made.run.id).exit_status == 125


# --- what nobody else takes back -------------------------------------------------------------


def test_a_run_whose_parent_was_killed_is_swept_and_one_that_lives_is_not(place: Place) -> None:
    lives, killed = place.ready("true"), place.ready("true")
    killed.lock.release()
    assert place.records.state(killed.run) == "lost"
    cleared: list[str] = []

    def clear(run: Run) -> None:
        cleared.append(run.id)
        if len(cleared) == 1:
            raise SandboxUnavailable("the engine does not run", hint="start it")

    assert sweep(place.records, place.granting, place.audit, clear=clear) == []
    assert place.records.state(killed.run) == "lost", "it is tried again"
    assert [run.id for run in sweep(place.records, place.granting, place.audit, clear=clear)] == [killed.run.id]
    assert place.granting.granted == [lives.run.id]
    assert sweep(place.records, place.granting, place.audit, clear=clear) == []
    assert cleared == [killed.run.id] * 2
    assert place.records.find(killed.run.id).exit_status is None
    assert try_lock_file(place.records.at(killed.run) / "lock") is not None


class Reached(Exception):
    """Raised in place of a start."""


class Unstarted(FakeSandbox):
    def start(self, spec: Spec, *, stdin: int, stdout: int, stderr: int) -> Any:
        raise Reached


@pytest.mark.parametrize("swapped", ["data", "project", None])
def test_nothing_is_mounted_that_has_become_a_link_since_it_was_looked_at(tmp_path: Path, swapped: str | None) -> None:
    """A mount may lie in the workspace, where what runs does as it likes; who joins later would see behind it."""
    base = tmp_path.resolve()
    for name in ("project", "data", "private", "run", "home"):
        (base / name).mkdir()
    spec = Spec(
        command=("true",),
        workspace=base / "project",
        home=base / "home",
        gateway=base,
        mounts=(Mount(source=base / "data", target="/mnt/data"),),
    )
    order = Order(run="0" * 12, folder=base / "run", home=base, sandbox="bubblewrap", spec=spec)
    if swapped is not None:
        (base / swapped).rmdir()
        (base / swapped).symlink_to(base / "private")
    with pytest.raises(WorkspaceRefused if swapped else Reached, match="not what it was" if swapped else None):
        parent.run(order, Unstarted())

"""What a run is kept as: begun only with live logins, read back whole or not at all, gone with its end."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from tests.support.handshakes import handshake
from tests.support.lockable_store import LockableStore
from tests.support.runs import clear
from tests.support.valet_keys import ACME, BEARER, WORK, ZENITH, Desk, provider
from valetkey.clock import SystemClock
from valetkey.config import Paths
from valetkey.credential import ApiKey, CredentialRef, Health, Secret
from valetkey.errors import ConfigError, NotForThisUse, NotLoggedIn, RecordDamaged, UnknownRun, UsageError
from valetkey.gateway import placeholders, run_authority
from valetkey.gateway.certificates import only_for
from valetkey.gateway.decide import Forward, Refuse, RequestHead, decide
from valetkey.gateway.place import LONGEST, run_folder
from valetkey.gateway.runs import BegunRun, Runs
from valetkey.provider import Api, AuthMethod, Parameter, Provider, Sandbox
from valetkey.store import Document, Record
from valetkey.testing.clock import START, FakeClock

CLAUDE = CredentialRef(provider="subscribed")
CONSOLE = CredentialRef(provider="console")


class Hall(Desk):
    """A desk at which runs begin."""

    home: Path

    @property
    def runs(self) -> Runs:
        return Runs(self.store, self.clock)

    def begin(self, *grants: CredentialRef, run: str = "run-1", **more: object) -> BegunRun:
        return self.runs.begin(
            run=run,
            grants=grants or (ACME,),
            catalogue=self.catalogue,
            environ=self.environ,
            paths=Paths(home=self.home),
            **more,  # type: ignore[arg-type]  # as named
        )


@pytest.fixture
def hall(tmp_path: Path) -> Iterator[Hall]:
    tenant = Parameter(key="tenant", label="Tenant", pattern="[a-z]+")
    sandbox = Sandbox(
        environment={"ACME_KEY": "{placeholder}", "ACME_TOKEN": "{placeholder}", "ACME_TENANT": "{tenant}"},
        files={"~/.acme": ("tenant={tenant}", "key={placeholder}")},
        placeholder="sk-acme-placeholder",
    )
    key = AuthMethod(id="api-key", kind="api-key", parameters=(tenant,), inject=BEARER, sandbox=sandbox)
    subscription = AuthMethod(
        id="api-key", kind="api-key", standing="restricted", for_agents=("claude",), inject=BEARER
    )
    console = AuthMethod(id="api-key", kind="api-key", standing="restricted", inject=BEARER)
    hall = Hall(
        store=LockableStore(clock=FakeClock()),
        known=(
            provider("acme", key),
            provider("zenith"),
            provider("subscribed", subscription),
            provider("console", console),
        ),
    )
    hall.home = tmp_path / "h"
    for ref in (ACME, WORK):
        hall.store.save(
            Record(
                ref=ref,
                credential=ApiKey(method="api-key", key=Secret("sk-" + "real" * 8), parameters={"tenant": "blue"}),
                hosts=("api.acme.example",),
                base_url="https://api.acme.example/v1",
            )
        )
    yield hall
    clear(hall.home)


# --- what it takes to begin ------------------------------------------------------------------


def test_all_missing_logins_are_named_at_once(hall: Hall) -> None:
    hall.log_in(CLAUDE, restricted=True)
    dead = hall.store.load(WORK)
    assert dead is not None
    hall.store.mark(WORK, generation=dead.generation, health=Health.NEEDS_LOGIN, reason="refused")
    with pytest.raises(NotLoggedIn, match="zenith@default, acme@work") as caught:
        hall.begin(ZENITH, ACME, WORK)
    assert caught.value.exit_status == 3
    assert "valetkey login zenith && valetkey login acme --account work" in caught.value.hint
    assert hall.runs.live() == []
    assert not run_folder(Paths(home=hall.home), {}, "run-1").exists()


def test_a_login_for_named_agents_is_granted_to_a_run_of_one_of_them_alone(hall: Hall) -> None:
    hall.log_in(CLAUDE, restricted=True)
    for agent in (None, "codex"):
        with pytest.raises(NotForThisUse):
            hall.begin(CLAUDE, agent=agent)
    with pytest.raises(NotForThisUse):
        hall.issue(CLAUDE)
    hall.begin(CLAUDE, agent="claude")
    [live] = hall.ring().live()
    assert [grant.ref for grant in live.client.grants] == [CLAUDE]


def test_any_other_restricted_login_wants_a_run_with_an_agent(hall: Hall) -> None:
    hall.log_in(CONSOLE, restricted=True)
    with pytest.raises(NotForThisUse):
        hall.begin(CONSOLE)
    hall.begin(CONSOLE, agent="codex")


def test_a_login_that_becomes_restricted_disables_the_run_that_has_it(hall: Hall) -> None:
    hall.log_in(ZENITH)
    hall.begin(ZENITH)
    hall.begin(ACME, run="run-2")
    hall.known = tuple(
        provider("zenith", AuthMethod(id="api-key", kind="api-key", standing="restricted", inject=BEARER))
        if known.id == "zenith"
        else known
        for known in hall.known
    )
    ring = hall.ring()
    assert ring.run("run-1") is None
    assert "restricted" in ring.why_no_run("run-1")
    assert "run-1" in ring.problems()
    assert set(ring.run_folders()) == {"run-1", "run-2"}
    assert [live.key.id for live in ring.live()] == ["run-2"]


@pytest.mark.parametrize("run", ["", "../x", "a/b", "A", "x" * 33, "-a", "a\n"])
def test_an_id_that_is_no_folders_name_is_refused(hall: Hall, run: str) -> None:
    with pytest.raises(UsageError):
        hall.begin(run=run)


def test_two_runs_have_not_one_id(hall: Hall) -> None:
    hall.begin()
    with pytest.raises(UsageError, match="run-1 already"):
        hall.begin()


@pytest.mark.parametrize(
    "host", ["", "a b", "example.com/path", "127.0.0.1", "localhost:80", "[::1]:80", "10.0.0.1", "x.internal", "a:0"]
)
def test_a_host_that_is_none_or_near_cannot_be_allowed(hall: Hall, host: str) -> None:
    with pytest.raises(UsageError):
        hall.begin(allow=(host,))


def test_a_policy_that_cannot_be_read_begins_no_run(hall: Hall) -> None:
    with pytest.raises(ConfigError, match=r"policy\.toml:1"):
        hall.begin(policy="default = 1", policy_file="policy.toml")


# --- what it gives ---------------------------------------------------------------------------


def test_placeholders_have_the_declared_form_and_no_two_are_alike(hall: Hall) -> None:
    first, second = hall.begin(ACME, WORK), hall.begin(ACME, run="run-2")
    texts = [text for run in (first, second) for by in run.placeholders.values() for text in by.values()]
    assert all(text.startswith("sk-acme-placeholder-vkp_") for text in texts)
    assert len(texts) == len(set(texts)) == 9
    assert set(first.placeholders[ACME]) == {"", "ACME_KEY", "ACME_TOKEN"}
    assert first.environment[WORK] == {
        "ACME_KEY": first.placeholders[WORK]["ACME_KEY"],
        "ACME_TOKEN": first.placeholders[WORK]["ACME_TOKEN"],
        "ACME_TENANT": "blue",
    }
    assert first.files[WORK] == {"~/.acme": f"tenant=blue\nkey={first.placeholders[WORK]['']}"}
    assert "vkp_" not in repr(first)


def test_without_a_declared_sandbox_a_run_sees_what_would_be_exported_but_for_the_secret(hall: Hall) -> None:
    exports = {"Z_KEY": "{key}", "Z_URL": "{base_url}", "Z_BOTH": "https://{tenant}:{key}@{pin}"}
    tenant, pin = Parameter(key="tenant", label="T", pattern="[a-z]+"), Parameter(key="pin", label="P", secret=True)
    shown = AuthMethod(
        id="api-key", kind="api-key", parameters=(tenant, pin), exports=exports, environment=("X",), inject=BEARER
    )
    key = ApiKey(method="api-key", key=Secret("sk-real"), parameters={"tenant": "blue", "pin": "1234"})
    at = "https://api.zenith.example"
    hall.store.save(Record(ref=ZENITH, credential=key, hosts=("api.zenith.example",), base_url=at))
    for one, variables in (
        (shown, {"Z_KEY", "Z_URL", "Z_BOTH"}),
        (replace(shown, exports={}), {"X"}),
    ):
        hall.known = (provider("zenith", one),)
        begun = hall.begin(ZENITH, run=f"run-{len(variables)}")
        environment = begun.environment[ZENITH]
        assert set(environment) == variables
        assert not {text for text in environment.values() if "sk-real" in text or "1234" in text}
        if variables == {"Z_KEY", "Z_URL", "Z_BOTH"}:
            assert environment["Z_KEY"] == begun.placeholders[ZENITH]["Z_KEY"]
            assert environment["Z_URL"] == "http://127.0.0.1:3128/zenith@default"
            made = begun.placeholders[ZENITH]["Z_BOTH"]
            assert environment["Z_BOTH"] == f"https://blue:{made}@{made}"
    assert placeholders.sandbox_of(replace(shown, endpoint="theirs")) == Sandbox(), "its endpoint says what it wants"


def test_a_run_is_read_back_as_it_was_begun(hall: Hall) -> None:
    begun = hall.begin(ACME, WORK, agent="claude", policy='default = "deny"', policy_file="p", allow=("example.com",))
    [found] = hall.runs.live()
    assert found == hall.runs.find("run-1")
    assert (found.grants, found.agent, found.policy, found.allow) == (
        (ACME, WORK),
        "claude",
        'default = "deny"',
        ("example.com",),
    )
    assert found.placeholders == begun.placeholders
    assert found.folder == begun.folder
    assert found.authority_key.reveal() not in repr(found)
    assert "PRIVATE KEY" in found.authority_key.reveal()
    assert "PRIVATE" not in begun.certificate


def test_one_that_is_damaged_disables_only_itself(hall: Hall) -> None:
    hall.begin()
    hall.begin(run="run-2")
    hall.store.put_document(Document(kind="run", id="run-1", title="run-1", body='{"format": 1}', updated_at=START))
    with pytest.raises(RecordDamaged):
        hall.runs.find("run-1")
    ring = hall.ring()
    assert ring.run("run-1") is None
    assert ring.run("run-2") is not None
    assert ring.run_folders()["run-1"] is None
    assert set(ring.problems()) == {"run-1"}
    hall.runs.end("run-1")
    assert [run.id for run in hall.runs.live()] == ["run-2"]


def test_the_end_takes_everything_away_and_may_come_twice(hall: Hall) -> None:
    begun = hall.begin()
    (begun.folder / "gateway.sock").touch()
    ring = hall.ring()
    live = ring.run("run-1")
    hall.runs.end("run-1")
    hall.runs.end("run-1")
    with pytest.raises(UnknownRun):
        hall.runs.find("run-1")
    assert not begun.folder.exists()
    assert ring.changed()
    assert ring.refresh() == [live]
    assert live is not None
    assert live.ended
    assert ring.why_no_run("run-1") == "the run has ended"


def test_a_run_that_is_as_it_was_stays_the_same_object(hall: Hall) -> None:
    hall.begin()
    ring = hall.ring()
    live = ring.run("run-1")
    hall.begin(run="run-2")
    assert ring.refresh() == []
    assert ring.run("run-1") is live


def test_while_the_store_cannot_be_read_no_run_counts_and_their_places_are_kept(hall: Hall) -> None:
    begun = hall.begin()
    ring = hall.ring()
    assert isinstance(hall.store, LockableStore)
    hall.store.locked = True
    assert [live.key.id for live in ring.refresh()] == ["run-1"]
    assert ring.run("run-1") is None
    assert ring.failed is not None
    assert ring.run_folders() == {"run-1": begun.folder}


# --- where it may go -------------------------------------------------------------------------


def test_a_policy_of_the_user_comes_before_what_is_allowed_beside(hall: Hall) -> None:
    policy = 'default = "allow"\nother_hosts = "deny"\n[[rule]]\ndeny = "* a.example.com/**"\n'
    hall.begin(policy=policy, policy_file="p", allow=("*.example.com", "b.example.org:8443"))
    [live] = hall.ring().live()

    def verdict(host: str, port: int = 443) -> type:
        head = RequestHead(method="CONNECT", scheme="https", host=host, port=port, path="/")
        return type(decide(head, live.client, live.policy))

    assert verdict("b.example.com") is Forward
    assert verdict("a.example.com") is Refuse
    assert verdict("b.example.org", 8443) is Forward
    assert verdict("b.example.org") is Refuse
    assert verdict("c.example.org") is Refuse


# --- its place -------------------------------------------------------------------------------


def test_the_folder_is_below_the_home_or_where_a_sockets_path_has_room(tmp_path: Path) -> None:
    assert run_folder(Paths(home=Path("/h")), {}, "r") == Path("/h/run/runs/r")
    far = Paths(home=tmp_path / ("x" * 80))
    runtime = tmp_path / "r"
    runtime.mkdir(0o700)
    for environ in ({}, {"XDG_RUNTIME_DIR": str(runtime)}, {"XDG_RUNTIME_DIR": "/" + "y" * 59}):
        found = run_folder(far, environ, "x" * 32)
        assert len(os.fsencode(found / "gateway.sock")) <= LONGEST
        assert found.parts[-2:] == ("runs", "x" * 32)
        assert not found.is_relative_to(far.home)
    assert run_folder(far, {}, "a").parent == run_folder(far, {}, "b").parent


# --- its authority ---------------------------------------------------------------------------


def constraints(run: BegunRun) -> x509.NameConstraints:
    certificate = x509.load_pem_x509_certificate(run.certificate.encode())
    found = certificate.extensions.get_extension_for_class(x509.NameConstraints)
    assert found.critical
    assert certificate.not_valid_after_utc == START + timedelta(days=90)
    return found.value


def test_the_authority_is_for_the_granted_hosts_and_for_no_address(hall: Hall) -> None:
    found = constraints(hall.begin(ACME, allow=("example.com",)))
    assert found.permitted_subtrees == [x509.DNSName("api.acme.example")]
    assert [str(name.value) for name in found.excluded_subtrees or ()] == ["0.0.0.0/0", "::/0"]


def test_no_two_runs_share_an_authority(hall: Hall) -> None:
    first, second = hall.begin(), hall.begin(run="run-2")
    one, other = (x509.load_pem_x509_certificate(run.certificate.encode()) for run in (first, second))
    assert one.public_key() != other.public_key()
    assert "run-2" in other.subject.rfc4514_string()


@pytest.mark.parametrize(
    ("hosts", "permitted"),
    [
        (["api.example.com:8443"], ["api.example.com"]),
        (["*.Example.com"], ["example.com"]),
        (["*-a.example.com", "b.*.example.org"], ["example.com", "example.org"]),
        (["127.0.0.1:80", "[::1]:443", "localhost"], ["127.0.0.1/32", "::1/128", "localhost"]),
        (["10.0.0.1"], ["10.0.0.1/32", "invalid"]),
        ([], ["invalid"]),
    ],
)
def test_hosts_become_constraints_as_far_as_they_can(hosts: list[str], permitted: list[str]) -> None:
    found = only_for(hosts)
    assert found is not None
    assert [str(name.value) for name in found.permitted_subtrees or ()] == permitted
    assert bool(found.excluded_subtrees) is not any("/" in name for name in permitted)


@pytest.mark.parametrize("host", ["*", "*:8443"])
def test_any_host_cannot_be_a_constraint(host: str) -> None:
    assert only_for(["a.example.com", host]) is None


@pytest.mark.anyio
async def test_a_certificate_for_another_host_is_believed_by_nobody() -> None:
    clock = SystemClock()
    key, certificate = run_authority.made("r", ["api.acme.example"], clock.now())
    authority = run_authority.RunAuthority(key, certificate, clock)
    try:
        handshake(await authority.context("api.acme.example"), certificate.encode(), "api.acme.example")
        for host in ("evil.example", "127.0.0.1", "acme.example"):
            with pytest.raises(ssl.SSLCertVerificationError, match=r"permitted subtree|excluded subtree"):
                handshake(await authority.context(host), certificate.encode(), host)
    finally:
        authority.close()


def test_a_key_of_another_certificate_is_no_authority() -> None:
    key, _ = run_authority.made("r", [], START)
    _, certificate = run_authority.made("r", [], START)
    with pytest.raises(ValueError, match="another key"):
        run_authority.RunAuthority(key, certificate, FakeClock())


def test_a_provider_without_a_sandbox_of_its_own_gets_a_plain_placeholder(hall: Hall) -> None:
    hall.log_in(ZENITH)
    begun = hall.begin(ZENITH)
    assert set(begun.placeholders[ZENITH]) == {""}
    assert begun.placeholders[ZENITH][""].startswith("vk-placeholder-vkp_")
    assert begun.environment[ZENITH] == {}


def test_a_server_that_wants_no_key_can_be_granted(hall: Hall) -> None:
    method = AuthMethod(id="key", kind="custom", optional=True, sandbox=Sandbox(environment={"K": "{placeholder}"}))
    api = Api(base_url="http://127.0.0.1:9/v1", hosts=("127.0.0.1:9",))
    hall.known = (*hall.known, Provider(id="nearby", name="N", api=api, auth=(method,)))
    begun = hall.begin(CredentialRef(provider="nearby"))
    assert begun.environment[CredentialRef(provider="nearby")]["K"].startswith("vk-placeholder-vkp_")

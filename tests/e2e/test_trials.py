"""Trials of the broker and the store with real processes: storms, kills, stops.

They run short here and in full under `make soak` (VALETKEY_SOAK=1), which prints the figures that docs/soak.md keeps.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.oidc_provider import OidcProvider, oidc_provider
from valetkey.clock import SystemClock
from valetkey.config import Paths
from valetkey.credential import ApiKey, CredentialRef, Health, OAuthToken, Secret
from valetkey.flows import flow_for
from valetkey.http import HttpClient
from valetkey.providers import catalogue
from valetkey.store import Record, Store
from valetkey.stores import open_store
from valetkey.testing.authorization_server import AuthorizationServer
from valetkey.testing.local_server import Answer, Received, Reply

SOAK = bool(os.environ.get("VALETKEY_SOAK"))
REF = CredentialRef(provider="acme")
PATIENCE_SECONDS = 120.0

DECLARATION = """
id = "acme"
name = "Acme"

[api]
base_url = "{issuer}"
allow_http = true
hosts = ["{host}"]

[[auth]]
id = "device"
kind = "device"
client_id = "{client_id}"
device_authorization_endpoint = "{issuer}/device/auth"
token_endpoint = "{token_endpoint}"
scope = ["openid", "offline_access"]
inject = [{{ set = {{ authorization = "Bearer {{access_token}}" }} }}]

[[auth]]
id = "api-key"
kind = "api-key"
inject = [{{ set = {{ authorization = "Bearer {{key}}" }} }}]
"""


def declare(home: Path, *, issuer: str, token_endpoint: str, client_id: str) -> None:
    folder = home / "providers"
    folder.mkdir(mode=0o700, exist_ok=True)
    text = DECLARATION.format(
        issuer=issuer, host=issuer.split("//")[1], token_endpoint=token_endpoint, client_id=client_id
    )
    (folder / "acme.toml").write_text(text)
    (folder / "acme.toml").chmod(0o600)


def save_dead_token(home: Path, refresh_token: str, *, host: str) -> None:
    """Store a login whose access token died an hour ago."""
    now = datetime.now(UTC)
    with opened(home) as store:
        store.save(
            Record(
                ref=REF,
                credential=OAuthToken(
                    method="device",
                    access_token=Secret("dead"),
                    refresh_token=Secret(refresh_token),
                    issued_at=now - timedelta(hours=2),
                    expires_at=now - timedelta(hours=1),
                ),
                hosts=(host,),
                endpoints=(host,),
                base_url=f"http://{host}",
            )
        )


@contextmanager
def opened(home: Path) -> Iterator[Store]:
    store = open_store(Paths(home=home), clock=SystemClock())
    try:
        yield store
    finally:
        store.close()


def log_in_by_device(home: Path, oidc: OidcProvider) -> None:
    """Get a real refresh token from the provider, and store it with a dead access token."""
    import asyncio

    declare(home, issuer=oidc.issuer, token_endpoint=oidc.token_endpoint, client_id=oidc.client_id)
    provider = catalogue(Paths(home=home)).get("acme")
    method = provider.method("device")
    assert method is not None
    http = HttpClient()
    declared = {"device_authorization_endpoint": oidc.device_authorization_endpoint}
    flow = flow_for(provider, _with(method, declared), parameters={}, http=http, clock=SystemClock(), environ={})

    async def run() -> OAuthToken:
        pending = await flow.initiate()
        assert pending.action.kind == "enter-user-code"
        oidc.approve_device(pending.action.user_code)
        token = await flow.poll(pending)
        assert isinstance(token, OAuthToken)
        return token

    token = asyncio.run(run())
    http.close()
    assert token.refresh_token is not None
    save_dead_token(home, token.refresh_token.reveal(), host=oidc.issuer.split("//")[1])
    oidc.reset_counts()


def log_in_at(home: Path, server: AuthorizationServer) -> None:
    """Store a dead token that this server renews."""
    declare(home, issuer=server.url, token_endpoint=f"{server.url}/token", client_id="trial")
    save_dead_token(home, "refresh-0", host=server.url.split("//")[1])


def _with(method: Any, changes: dict[str, Any]) -> Any:
    from dataclasses import replace

    return replace(method, **changes)


@dataclass(kw_only=True)
class Worker:
    """One tests/support/broker_process.py."""

    process: subprocess.Popen[str]

    @classmethod
    def start(cls, home: Path, job: str, **settings: object) -> Worker:
        environ = {k: v for k, v in os.environ.items() if k not in ("VALETKEY_HOME",)}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.broker_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environ,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        worker = cls(process=process)
        worker.tell(json.dumps({"home": str(home), "provider": "acme", "job": job, **settings}))
        return worker

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def go(self) -> None:
        self.tell("go")

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the process ended with {self.process.wait()}"
        said = json.loads(line)
        assert isinstance(said, dict)
        return said

    def rest(self) -> list[dict[str, Any]]:
        """Give what a process said before it was killed; a line that was cut is none."""
        assert self.process.stdout is not None
        said = []
        for line in self.process.stdout.read().splitlines():
            try:
                said.append(json.loads(line))
            except ValueError:
                continue
        return said

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


@contextmanager
def workers() -> Iterator[list[Worker]]:
    """Give a list whose processes are ended by their ids, whatever happens."""
    started: list[Worker] = []
    try:
        yield started
    finally:
        for worker in started:
            worker.end()


# --- storm ------------------------------------------------------------------------------------


def test_a_storm_of_processes_and_tasks_makes_one_refresh(home: Path, record_property: Any) -> None:
    processes, tasks = (64, 50) if SOAK else (12, 50)
    with oidc_provider() as oidc, workers() as crowd:
        log_in_by_device(home, oidc)
        crowd.extend(Worker.start(home, "ask", tasks=tasks) for _ in range(processes))
        for worker in crowd:
            assert worker.hear() == {"ready": True}
        for worker in crowd:
            worker.go()
        said = [worker.hear() for worker in crowd]
        answers: Counter[str] = sum((Counter(s["answers"]) for s in said), Counter())
        errors: Counter[str] = sum((Counter(s["errors"]) for s in said), Counter())
        assert not errors
        assert list(answers.values()) == [processes * tasks]
        assert oidc.counts().refreshes == 1
        with opened(home) as store:
            record = store.load(REF)
        assert record is not None
        assert isinstance(record.credential, OAuthToken)
        assert oidc.is_good(record.credential.access_token.reveal())
    print(f"\nstorm: {processes} processes x {tasks} tasks, {sum(answers.values())} answers, 1 refresh")  # noqa: T201  # soak's figures


# --- stops (features D2, on one machine) ------------------------------------------------------


@pytest.mark.parametrize("point", ["before-post", "after-answer", "after-save"])
def test_a_stopped_holder_goes_on_and_the_login_lives(home: Path, point: str) -> None:
    with oidc_provider() as oidc, workers() as crowd:
        log_in_by_device(home, oidc)
        holder = Worker.start(home, "ask", stop_at=point)
        crowd.append(holder)
        holder.hear()
        holder.go()
        assert holder.hear() == {"stopped": point}
        other = Worker.start(home, "ask")
        crowd.append(other)
        other.hear()
        other.go()
        if point == "after-save":
            assert sum(other.hear()["answers"].values()) == 1  # it is saved: the lock is not needed
            holder.signal(signal.SIGCONT)
        else:
            holder.signal(signal.SIGCONT)
            assert sum(other.hear()["answers"].values()) == 1
        assert sum(holder.hear()["answers"].values()) == 1
        assert oidc.counts().refreshes == 1
        with opened(home) as store:
            record = store.load(REF)
            assert record is not None
            assert (record.health, store.intent(REF)) == (Health.OK, None)


def test_a_holder_stopped_between_request_and_answer_goes_on_and_the_login_lives(
    home: Path, authorization_server: AuthorizationServer
) -> None:
    arrived, let_go = threading.Event(), threading.Event()
    RotatingServer(authorization_server, arrived=arrived, let_go=let_go)
    log_in_at(home, authorization_server)
    with workers() as crowd:
        holder = Worker.start(home, "ask")
        crowd.append(holder)
        holder.hear()
        holder.go()
        assert arrived.wait(PATIENCE_SECONDS)
        holder.signal(signal.SIGSTOP)
        let_go.set()  # the answer comes while nobody listens
        holder.signal(signal.SIGCONT)
        assert sum(holder.hear()["answers"].values()) == 1
        assert len(authorization_server.calls("/token")) == 1


@pytest.mark.soak  # waits out the 30 s of a stopped holder; test_broker.py moves the clock instead
@pytest.mark.parametrize("point", ["before-post", "after-answer"])
def test_nobody_sends_a_second_request_while_the_holder_is_stopped(home: Path, point: str) -> None:
    with oidc_provider() as oidc, workers() as crowd:
        log_in_by_device(home, oidc)
        holder = Worker.start(home, "ask", stop_at=point)
        crowd.append(holder)
        holder.hear()
        holder.go()
        holder.hear()
        other = Worker.start(home, "ask")
        crowd.append(other)
        other.hear()
        other.go()
        assert other.hear() == {"answers": {}, "errors": {"refresh_busy": 1}}
        assert oidc.counts().refreshes == (0 if point == "before-post" else 1)
        holder.signal(signal.SIGCONT)
        assert sum(holder.hear()["answers"].values()) == 1
        assert oidc.counts().refreshes == 1


@pytest.mark.parametrize(
    ("point", "health", "refreshes"),
    [
        ("before-post", Health.OK, 1),  # the server had not acted: the one attempt succeeds
        ("after-answer", Health.NEEDS_LOGIN, 2),  # the token was spent: single-use tokens cannot do better
        ("after-save", Health.OK, 1),
    ],
)
def test_a_killed_holder_leaves_no_lock_and_no_silent_loss(
    home: Path, point: str, health: Health, refreshes: int
) -> None:
    with oidc_provider() as oidc, workers() as crowd:
        log_in_by_device(home, oidc)
        holder = Worker.start(home, "ask", stop_at=point)
        crowd.append(holder)
        holder.hear()
        holder.go()
        holder.hear()
        holder.signal(signal.SIGKILL)
        holder.process.wait()
        other = Worker.start(home, "ask")
        crowd.append(other)
        other.hear()
        other.go()
        said = other.hear()
        assert said["errors"] == ({"needs_login": 1} if health is Health.NEEDS_LOGIN else {})
        assert oidc.counts().refreshes == refreshes
        with opened(home) as store:
            record = store.load(REF)
            assert record is not None
            assert record.health is health
            assert store.intent(REF) is None
        if health is Health.NEEDS_LOGIN:
            assert "cut off before its answer was saved" in record.reason


# --- kills ------------------------------------------------------------------------------------


class RotatingServer:
    """A token endpoint that counts: access-N for whatever refresh token comes, N one more each time.

    It forgives reuse, so that a kill between its answer and the save does not end the trial.
    """

    def __init__(
        self,
        server: AuthorizationServer,
        *,
        arrived: threading.Event | None = None,
        let_go: threading.Event | None = None,
    ) -> None:
        self.issued = 0
        self._arrived = arrived
        self._let_go = let_go
        server.replies("/token", self._answer)

    def _answer(self, request: Received) -> Reply:
        if self._arrived is not None and self._let_go is not None:
            self._arrived.set()
            self._let_go.wait(PATIENCE_SECONDS)
        self.issued += 1
        number = self.issued
        body = {"access_token": f"access-{number}", "refresh_token": f"refresh-{number}", "expires_in": 3600}
        return Answer(status=200, headers={"content-type": "application/json"}, body=json.dumps(body).encode())


def test_random_kills_lose_nothing_and_put_nothing_older_over_newer(
    home: Path, authorization_server: AuthorizationServer
) -> None:
    kills = 1000 if SOAK else 25
    chance = random.Random(20261122)
    RotatingServer(authorization_server)
    log_in_at(home, authorization_server)
    saved: dict[str, int] = {}
    newest = [0]
    jobs: list[dict[str, Any]] = [{"job": "churn"}] * 4 + [
        {"job": "write", "account": f"writer-{n % 4}"} for n in range(8)
    ]
    with workers() as crowd:

        def start(job: dict[str, Any]) -> Worker:
            worker = Worker.start(home, **job)
            crowd.append(worker)
            return worker

        living = [(job, start(job)) for job in jobs]
        for _, worker in living:
            worker.hear()
            worker.go()
        for _ in range(kills):
            time.sleep(chance.uniform(0.0, 0.05))  # the trial is about real time: a kill at any moment
            index = chance.randrange(len(living))
            job, victim = living[index]
            victim.signal(signal.SIGKILL)
            for said in victim.rest():
                if "value" in said:
                    saved[job["account"]] = max(saved.get(job["account"], 0), said["value"])
            victim.end()
            crowd.remove(victim)
            replacement = start(job)
            replacement.hear()
            replacement.go()
            living[index] = (job, replacement)
            _check(home, saved, newest)
        for job, worker in living:
            worker.signal(signal.SIGKILL)
            for said in worker.rest():
                if "value" in said:
                    saved[job["account"]] = max(saved.get(job["account"], 0), said["value"])
        _check(home, saved, newest)
    with opened(home) as store:
        lock = store.try_lock(str(REF))
        assert lock is not None, "a lock was left behind"
        lock.release()
        assert store.load(REF) is not None
    written = sum(saved.values())
    print(f"\nkills: {kills}, {written} saves and {newest[-1]} renewals, nothing lost, no lock left behind")  # noqa: T201  # soak's figures


def _check(home: Path, saved: dict[str, int], newest: list[int]) -> None:
    """What was said to be saved is there, or newer; no token is older than one seen before; every record opens."""
    with opened(home) as store:
        renewed = store.load(REF)
        assert renewed is not None
        assert isinstance(renewed.credential, OAuthToken)
        number = int(renewed.credential.access_token.reveal().removeprefix("access-").replace("dead", "0"))
        assert number >= newest[-1]
        newest.append(number)
        for account, value in saved.items():
            record = store.load(CredentialRef(provider="acme", account=account))
            assert record is not None
            assert isinstance(record.credential, ApiKey)
            assert int(record.credential.key.reveal()) >= value
            assert record.generation == int(record.credential.key.reveal())

"""A process that asks a broker for one account, as one of many. Settings come as a line of JSON on standard input.

It says `ready`, waits for a line, then asks. What it says after that depends on `job`:

    ask    {"answers": {"<sha256 of the token>": how many of `tasks` got it, …}, "errors": {"<code>": n, …}}
    churn  one line {"token": …} for each renewal that it was given, for ever
    write  one line {"value": n} for each value that was saved, for ever

`stop_at` makes it stop itself (SIGSTOP) once: before-post, after-answer, after-save. It says {"stopped": …} first.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from valetkey.broker import Broker
from valetkey.clock import SystemClock
from valetkey.config import Paths
from valetkey.credential import ApiKey, Credential, CredentialRef, Secret, secrets_of
from valetkey.errors import GenerationConflict, ValetkeyError
from valetkey.http import HttpClient
from valetkey.providers import catalogue
from valetkey.store import Intent, Record, Store
from valetkey.stores import open_store


def say(**what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


class Stopping:
    """A store that stops its process at one point of the renewal, once."""

    def __init__(self, store: Store, stop_at: str) -> None:
        self._store = store
        self._stop_at = stop_at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def _reach(self, point: str) -> None:
        if self._stop_at == point:
            self._stop_at = ""
            say(stopped=point)
            # To this thread: a signal to the process may be taken by another one, while this one goes on to save.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)

    def begin_intent(self, ref: CredentialRef, intent: Intent) -> None:
        self._store.begin_intent(ref, intent)
        self._reach("before-post")

    def save(self, record: Record) -> Record:
        self._reach("after-answer")
        saved = self._store.save(record)
        self._reach("after-save")
        return saved


def open_up(settings: dict[str, Any]) -> Broker:
    home = Path(settings["home"])
    paths = Paths(home=home)
    clock = SystemClock()
    store: Store = open_store(paths, clock=clock)
    if settings.get("stop_at"):
        store = Stopping(store, settings["stop_at"])
    return Broker(store=store, catalogue=catalogue(paths), http=HttpClient(), clock=clock, environ={})


def digest(credential: Credential) -> str:
    return hashlib.sha256(next(iter(secrets_of(credential).values())).reveal().encode()).hexdigest()


async def ask(broker: Broker, ref: CredentialRef, tasks: int) -> None:
    results = await asyncio.gather(*(broker.credential(ref) for _ in range(tasks)), return_exceptions=True)
    answers = Counter(digest(r) for r in results if not isinstance(r, BaseException))
    errors = Counter(r.code for r in results if isinstance(r, ValetkeyError))
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, ValetkeyError):
            raise result
    say(answers=answers, errors=errors)


async def churn(broker: Broker, ref: CredentialRef) -> None:
    held: Credential | None = None
    while True:
        try:
            held = await broker.credential(ref, rejected=held)
        except ValetkeyError as error:
            say(error=error.code)
            held = None
            await asyncio.sleep(0.05)
        else:
            say(token=next(iter(secrets_of(held).values())).reveal())


def write(store: Store, ref: CredentialRef, start: int) -> None:
    """Count up in one account that others write too; say each value only when it is saved."""
    value = start
    while True:
        record = store.load(ref)
        if record is None:
            record = Record(ref=ref, credential=ApiKey(method="api-key", key=Secret("0")))
        assert isinstance(record.credential, ApiKey)
        value = int(record.credential.key.reveal()) + 1
        try:
            saved = store.save(replace(record, credential=ApiKey(method="api-key", key=Secret(str(value)))))
        except GenerationConflict:
            continue
        say(value=value, generation=saved.generation)


def main() -> None:
    settings = json.loads(sys.stdin.readline())
    broker = open_up(settings)
    ref = CredentialRef(provider=settings["provider"], account=settings.get("account", "default"))
    say(ready=True)
    sys.stdin.readline()
    match settings["job"]:
        case "ask":
            asyncio.run(ask(broker, ref, settings.get("tasks", 1)))
            broker.close()
        case "churn":
            asyncio.run(churn(broker, ref))
        case "write":
            write(broker.store, ref, 0)


if __name__ == "__main__":
    main()

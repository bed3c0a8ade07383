"""A process that saves a new key for one account again and again, and says when: `{"value": n, "at": monotonic}`.

Settings come as a line of JSON on standard input; it ends after `times`. CLOCK_MONOTONIC is one for all processes.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from valetkey.clock import SystemClock
from valetkey.config import Paths
from valetkey.credential import ApiKey, CredentialRef, Secret
from valetkey.stores import open_store


def main() -> None:
    settings = json.loads(sys.stdin.readline())
    store = open_store(Paths(home=Path(settings["home"])), clock=SystemClock(), environ={})
    ref = CredentialRef(provider=settings["provider"])
    for number in range(1, settings["times"] + 1):
        record = store.load(ref)
        assert record is not None
        key = Secret(f"{settings['prefix']}{number:06}")
        store.save(replace(record, credential=ApiKey(method="api-key", key=key)))
        sys.stdout.write(json.dumps({"value": number, "at": time.monotonic()}) + "\n")
        sys.stdout.flush()
        time.sleep(settings["every_seconds"])
    store.close()


if __name__ == "__main__":
    main()

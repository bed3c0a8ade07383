"""Valetkey's gateway as one of the proxies, set up by its own command line in a home made for the run.

Its client has a valet key with limits and a policy of fifty rules; decision, limits and trace are on.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.client import Address
from bench.running import Cores, free_port, started
from bench.targets import Target, Upstreams
from bench.upstream import MODEL
from valetkey.clock import SystemClock
from valetkey.config import Paths
from valetkey.credential import ApiKey, CredentialRef, Secret
from valetkey.stores import open_store

__all__ = ["FEW", "FULL_LOAD", "Rotation", "Valetkey", "missing", "valetkey"]

FAST, SLOW = "bench-fast", "bench-slow"
RULES = 50
# The most requests a minute that a key may have, which each part gets anew; the gateway keeps 8 bytes for each of them,
# and a key that opens a thousand streams ten times over needs few.
FULL_LOAD, FEW = 1_000_000, 60_000
PROGRAM = str(Path(sys.executable).parent / "valetkey")


@dataclass(frozen=True, kw_only=True)
class Valetkey(Target):
    """`tunnelled` and `slow_tunnelled` reach the same upstreams through CONNECT, with the CA of the gateway."""

    home: Path
    upstreams: Upstreams
    tunnelled: Address
    slow_tunnelled: Address
    policy: Path = field(repr=False)

    def run(self, *argv: str, key: str = "") -> str:
        return command(self.home, *argv, key=key)

    def new_key(self, name: str, *, per_minute: int = FULL_LOAD) -> str:
        """Issue a valet key for both upstreams, with limits that are counted and not reached."""
        limits = ["--rpm", str(per_minute), "--tokens-per-day", "1000000000000", "--concurrent", "100000"]
        grants = ["--grant", FAST, "--grant", SLOW]
        issued = self.run("key", "create", "--name", name, *grants, *limits, "--policy", str(self.policy), "--json")
        return str(json.loads(issued)["key"])

    def revoke(self, name: str) -> None:
        self.run("key", "revoke", name, "--json")

    def with_key(self, token: str) -> Valetkey:
        """Give the same gateway for a client that has this valet key."""
        assert self.slow is not None
        return replace(
            self,
            fast=replace(self.fast, token=token),
            slow=replace(self.slow, token=token),
            tunnelled=replace(self.tunnelled, token=token),
            slow_tunnelled=replace(self.slow_tunnelled, token=token),
        )


def command(home: Path, *argv: str, key: str = "") -> str:
    """Run a command of ours and give what it prints. Secrets go in by standard input."""
    ran = subprocess.run(
        [PROGRAM, *argv], input=key, capture_output=True, text=True, check=False, env=_environ(home, inherit=True)
    )
    if ran.returncode:
        raise SystemExit(f"valetkey {' '.join(argv[:2])} ended with {ran.returncode}: {ran.stderr[-600:]}")
    return ran.stdout


def _environ(home: Path, *, inherit: bool = False) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if inherit and name in os.environ}
    return {**kept, "VALETKEY_HOME": str(home), "VALETKEY_STORE_KEY_SOURCE": "key-file"}


def missing() -> str:
    """Say why the gateway cannot be measured here; nothing where it can."""
    ran = subprocess.run([PROGRAM, "serve", "--help"], capture_output=True, text=True, check=False)
    return "" if ran.returncode == 0 else "Valetkey has no `serve` here"


def _policy(folder: Path, upstreams: Upstreams) -> Path:
    """Write fifty rules; the one that counts is the last."""
    lines = ['default = "deny"']
    for number in range(RULES - 2):
        lines += ["[[rule]]", f'deny = "POST api-{number}.example.com/v1/{number}/*/files/**"']
    for port in (upstreams.fast, upstreams.slow):
        lines += ["[[rule]]", f'allow = "GET,POST 127.0.0.1:{port}/v1/**"']
    path = folder / "policy.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


@contextlib.contextmanager
def valetkey(upstreams: Upstreams, folder: Path, on: Cores) -> Iterator[Valetkey]:
    home = folder / "home"
    home.mkdir(mode=0o700)
    (home / "config.toml").write_text(f"[network]\nca_file = {json.dumps(str(upstreams.ca_file))}\n")
    for provider, port in ((FAST, upstreams.fast), (SLOW, upstreams.slow)):
        base_url = f"https://127.0.0.1:{port}/v1"
        declared = ["--base-url", base_url, "--dialect", "openai-chat", "--model", MODEL]
        command(home, "providers", "add", provider, *declared, "--no-verify")
        command(home, "login", provider, "--key", "-", "--no-verify", key=upstreams.key)
    port = free_port()
    log = folder / "valetkey.log"
    argv = [PROGRAM, "serve", "--port", str(port)]
    with started("valetkey", argv, core=on.proxy, ports=[port], log=log, environ=_environ(home)) as process:
        ca_file = folder / "gateway-ca.pem"
        ca_file.write_text(command(home, "ca", "export"))
        through: dict[str, Any] = {"through": port, "ca_file": str(ca_file)}
        gateway = Valetkey(
            name="Valetkey",
            fast=Address(port=port, prefix=f"/{FAST}"),
            slow=Address(port=port, prefix=f"/{SLOW}"),
            process=process,
            home=home,
            upstreams=upstreams,
            tunnelled=Address(port=upstreams.fast, **through),
            slow_tunnelled=Address(port=upstreams.slow, **through),
            policy=_policy(folder, upstreams),
        )
        yield gateway.with_key(gateway.new_key("bench", per_minute=FEW))


class Rotation:
    """Saves another credential of the streaming upstream each time: the key, and behind it its number."""

    def __init__(self, home: Path, key: str) -> None:
        self._store = open_store(Paths(home=home), clock=SystemClock(), key_source_kind="key-file")
        record = self._store.load(CredentialRef(provider=SLOW, account="default"))
        assert record is not None
        self._record, self._key, self._number = record, key, 0

    def save_next(self) -> int:
        """Save the next one, durable on return, and give its number."""
        self._number += 1
        credential = ApiKey(method=self._record.credential.method, key=Secret(f"{self._key}-{self._number:07}"))
        self._record = self._store.save(replace(self._record, credential=credential))
        return self._number

    def close(self) -> None:
        self._store.close()

"""Prints the table of figures: whole commands side by side, interleaved in one run, medians of 20.

    make bench            # all
    python bench/run.py token ask accounts audit

The programs that Valetkey is compared with live in .venv-bench; gh and gnome-keyring are Debian's. What is not
installed is named. Each command runs in a home of its own with made-up credentials.
"""

from __future__ import annotations

import compileall
import contextlib
import os
import platform
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
# In place of this folder, whose valetkey.py is another one.
sys.path[0] = str(ROOT)

from tests.support.servers import model_server  # noqa: E402  # the path comes first
from valetkey.audit import reader  # noqa: E402
from valetkey.audit.export import export  # noqa: E402
from valetkey.audit.recorder import Audit  # noqa: E402
from valetkey.audit.signing import public_key, sign, signing_key  # noqa: E402
from valetkey.audit.verify import verify  # noqa: E402
from valetkey.clock import SystemClock  # noqa: E402
from valetkey.config import Paths  # noqa: E402
from valetkey.credential import ApiKey, CredentialRef, Secret  # noqa: E402
from valetkey.store import Record  # noqa: E402
from valetkey.stores import open_store  # noqa: E402

RUNS = 20
BIN = Path(sys.executable).parent
OTHERS = ROOT / ".venv-bench" / "bin"


@dataclass(frozen=True, kw_only=True)
class Program:
    """One command of a comparison; `first_byte` times the first byte of its output, not its end."""

    name: str
    argv: Sequence[str]
    environ: Mapping[str, str] = field(default_factory=dict)
    first_byte: bool = False


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "DBUS_SESSION_BUS_ADDRESS") if name in os.environ}
    return {**kept, **extra}


def milliseconds(program: Program) -> float:
    began = time.perf_counter()
    process = subprocess.Popen(
        program.argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(program.environ),
    )
    assert process.stdout is not None
    first = process.stdout.read(1)
    reached = time.perf_counter()
    _, complaint = process.communicate()
    if process.returncode or (program.first_byte and not first):
        raise SystemExit(f"{program.name} ended with {process.returncode}: {complaint.decode(errors='replace')[:400]}")
    return ((reached if program.first_byte else time.perf_counter()) - began) * 1000


def compare(title: str, programs: Sequence[Program], *, against: int = 0, runs: int = RUNS) -> list[float]:
    """Run them in turn, A B C A B C …, after one round that is not counted; print medians and ratios."""
    taken: list[list[float]] = [[] for _ in programs]
    for program in programs:
        milliseconds(program)
    for _ in range(runs):
        for times, program in zip(taken, programs, strict=True):
            times.append(milliseconds(program))
    medians = [statistics.median(times) for times in taken]
    print(f"\n{title} (medians of {runs}, ms)\n")
    print(f"| {'command':44} | median | min | max | x {programs[against].name} |")
    print(f"|{'-' * 46}|---|---|---|---|")
    for program, times, median in zip(programs, taken, medians, strict=True):
        ratio = median / medians[against]
        print(f"| {program.name:44} | {median:.1f} | {min(times):.1f} | {max(times):.1f} | {ratio:.2f} |")
    return medians


def save_keys(home: Path, count: int) -> None:
    """Store so many accounts of one provider; the one that is asked for is in the middle."""
    store = open_store(Paths(home=home), clock=SystemClock(), key_source_kind="key-file")
    try:
        for number in range(count):
            store.save(
                Record(
                    ref=CredentialRef(provider="openai", account=f"a{number:06}"),
                    credential=ApiKey(method="api-key", key=Secret("sk-" + secrets.token_hex(24))),
                    hosts=("api.openai.com",),
                    base_url="https://api.openai.com/v1",
                )
            )
    finally:
        store.close()


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="valetkey-bench-") as name:
        yield Path(name)


def home_in(place: Path, name: str = "home") -> Path:
    home = place / name
    home.mkdir(mode=0o700)
    return home


# --- token ------------------------------------------------------------------------------------


def others_for_token(place: Path) -> Iterator[Program]:
    """Give what hands out a stored credential elsewhere, each with a made-up one."""
    key = "made-up-" + secrets.token_hex(16)
    if gh := shutil.which("gh"):
        config = place / "gh"
        config.mkdir()
        (config / "hosts.yml").write_text(f"github.com:\n    oauth_token: {key}\n    user: somebody\n")
        yield Program(name="gh auth token", argv=[gh, "auth", "token"], environ={"GH_CONFIG_DIR": str(config)})
    else:
        print("not here: gh (Debian's package gh)")
    if (OTHERS / "aws").exists():
        credentials = place / "credentials"
        credentials.write_text(f"[default]\naws_access_key_id = {key}\n")
        yield Program(
            name="aws configure get",
            argv=[str(OTHERS / "aws"), "configure", "get", "aws_access_key_id"],
            environ={"AWS_SHARED_CREDENTIALS_FILE": str(credentials), "HOME": str(place)},
        )
    if (OTHERS / "llm").exists():
        user = place / "llm"
        user.mkdir()
        (user / "keys.json").write_text(f'{{"openai": "{key}"}}')
        yield Program(
            name="llm keys get",
            argv=[str(OTHERS / "llm"), "keys", "get", "openai"],
            environ={"LLM_USER_PATH": str(user)},
        )
    if (OTHERS / "keyring").exists() and "DBUS_SESSION_BUS_ADDRESS" in os.environ:
        keyring = [str(OTHERS / "keyring")]
        subprocess.run(
            [*keyring, "set", "bench", "somebody"], input=key.encode(), check=True, stdout=subprocess.DEVNULL
        )
        yield Program(name="keyring get", argv=[*keyring, "get", "bench", "somebody"])
    else:
        print("not here: keyring, or gnome-keyring to keep it in (Debian's package gnome-keyring)")


@contextlib.contextmanager
def keychain(place: Path) -> Iterator[None]:
    """Let `keyring` find a real keychain, where gnome-keyring is installed."""
    if not shutil.which("gnome-keyring-daemon"):
        yield
        return
    from tests.support.keychain import gnome_keyring

    bus = place / "bus"
    bus.mkdir()
    with gnome_keyring(bus) as address:
        os.environ["DBUS_SESSION_BUS_ADDRESS"] = address
        try:
            yield
        finally:
            del os.environ["DBUS_SESSION_BUS_ADDRESS"]


def bench_token() -> None:
    with folder() as place, keychain(place):
        home = home_in(place)
        save_keys(home, 10)
        programs = [
            Program(name="python -c pass", argv=[sys.executable, "-c", "pass"]),
            Program(
                name="valetkey token",
                argv=[str(BIN / "valetkey"), "token", "openai@a000005"],
                environ={"VALETKEY_HOME": str(home)},
            ),
            *others_for_token(place),
        ]
        compare("A stored credential on stdout", programs)


# --- ask --------------------------------------------------------------------------------------


def bench_ask() -> None:
    with folder() as place, model_server() as model:
        home = home_in(place)
        environ = {"VALETKEY_HOME": str(home), "VALETKEY_STORE_KEY_SOURCE": "key-file"}
        valetkey = str(BIN / "valetkey")
        for argv, stdin in (
            (
                [
                    *("providers", "add", "bench", "--dialect", "openai-chat", "--base-url", model.base_url),
                    *("--model", model.model, "--allow-http"),
                ],
                None,
            ),
            (["login", "bench", "--key", "-"], model.api_key),
        ):
            subprocess.run(
                [valetkey, *argv],
                input=(stdin or "").encode(),
                check=True,
                env=environment(environ),
                capture_output=True,
            )
        user = place / "llm"
        user.mkdir()
        (user / "keys.json").write_text(f'{{"bench": "{model.api_key}"}}')
        (user / "extra-openai-models.yaml").write_text(
            f"- model_id: bench\n  model_name: {model.model}\n  api_base: {model.base_url}\n  api_key_name: bench\n"
        )
        question = "Say hello."
        programs = [
            Program(
                name="valetkey ask, first byte",
                argv=[valetkey, "ask", "-m", f"bench/{model.model}", question],
                environ=environ,
                first_byte=True,
            ),
        ]
        if (OTHERS / "llm").exists():
            programs.append(
                Program(
                    name="llm, first byte",
                    argv=[str(OTHERS / "llm"), "-m", "bench", question],
                    environ={"LLM_USER_PATH": str(user)},
                    first_byte=True,
                )
            )
        compare("The first token from the same server", programs)


# --- many accounts ----------------------------------------------------------------------------


def bench_accounts() -> None:
    with folder() as place:
        few, many = home_in(place, "few"), home_in(place, "many")
        save_keys(few, 10)
        began = time.perf_counter()
        save_keys(many, 100_000)
        print(f"\n100,000 accounts saved in {time.perf_counter() - began:.0f} s, each with its own fsync")
        valetkey = str(BIN / "valetkey")
        compare(
            "One account of ten and of 100,000",
            [
                Program(
                    name="token, 10 accounts",
                    argv=[valetkey, "token", "openai@a000005"],
                    environ={"VALETKEY_HOME": str(few)},
                ),
                Program(
                    name="token, 100,000 accounts",
                    argv=[valetkey, "token", "openai@a050000"],
                    environ={"VALETKEY_HOME": str(many)},
                ),
                Program(
                    name="list --limit 50, 10 accounts",
                    argv=[valetkey, "list", "--limit", "50"],
                    environ={"VALETKEY_HOME": str(few)},
                ),
                Program(
                    name="list --limit 50, 100,000 accounts",
                    argv=[valetkey, "list", "--limit", "50"],
                    environ={"VALETKEY_HOME": str(many)},
                ),
            ],
        )


# --- audit ------------------------------------------------------------------------------------


def bench_audit() -> None:
    """Time both verifiers on 10,000 entries, and what the gateway waits for at a use."""
    with folder() as place:
        home = home_in(place)
        paths, clock = Paths(home=home), SystemClock()
        store = open_store(paths, clock=clock, key_source_kind="key-file")
        audit = Audit(paths, clock)
        firsts = []
        for number in range(10_000):
            began = time.perf_counter()
            audit.note("key:0123456789ab", f"openai@a{number:06}")
            firsts.append((time.perf_counter() - began) * 1000)
            if number % 100 == 99:
                sign(audit, store, paths, clock)
        again = timeit.timeit(lambda: audit.note("key:0123456789ab", "openai@a000005"), number=100_000) / 100_000
        print("\nThe audit")
        print(f"first use of a minute: median {statistics.median(firsts):.2f} ms, max {max(firsts):.2f} ms")
        print(f"each further use: {again * 1e9:.0f} ns")
        audit.close()
        file = place / "audit.jsonl"
        key = public_key(signing_key(store, paths, clock))
        store.close()
        export(paths.audit, file, client=None, key=key)
        for title, lines in (
            ("audit.db", reader.lines(paths.audit)),
            ("an export", file.read_bytes().splitlines(True)),
        ):
            began = time.perf_counter()
            found = verify(lines, key=key, anchor=None, whole=False)
            took = time.perf_counter() - began
            print(f"verify {title}: {found.entries} entries, {found.checkpoints} checkpoints in {took:.2f} s")
        argv = [sys.executable, str(ROOT / "docs" / "verify_audit.py"), str(file), "--key", key]
        print(f"docs/verify_audit.py, the whole command: {milliseconds(Program(name='apart', argv=argv)) / 1000:.2f} s")


BENCHES: dict[str, Callable[[], None]] = {
    "token": bench_token,
    "ask": bench_ask,
    "accounts": bench_accounts,
    "audit": bench_audit,
}


def main() -> None:
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    compileall.compile_dir(str(ROOT / "src"), quiet=2)
    print(f"{datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, {os.cpu_count()} cores")
    for name in sys.argv[1:] or BENCHES:
        BENCHES[name]()


if __name__ == "__main__":
    main()

"""Prints how fast the gateway is beside nginx, Envoy, mitmproxy and LiteLLM, all doing the same work in one run.

    make bench-gateway                                    # all, about ten minutes
    python -m bench.gateway --quick                       # a minute: shows that it works, no more
    python -m bench.gateway load streams --only nginx --only valetkey --rounds 3
    python -m bench.gateway --profile                     # where Valetkey's time goes under load

Each proxy takes plain HTTP, puts the real key in and forwards over verified TLS. It has one core; load and upstream
have another. Rounds go A B C … A B C …, and ratios are those of the same round. What is not installed is named.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import os
import platform
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from bench import report, valetkey
from bench.client import Address, Connection, Crew, Load, paced, wrk
from bench.running import Cores, cores, free_port, more_files, started, tool
from bench.streams import Latencies, Waves, big_bodies, first_bytes, idle_waves
from bench.targets import HEAVY, LIGHT, ROOT, VENV, Start, Target, Upstreams
from bench.trials import intercepted, new_connections, revocation, rotation
from bench.upstream import ANSWER, Settings, nginx_upstream
from bench.valetkey import Valetkey
from tests.support.tls import CertificateAuthority

CONNECTIONS = (16, 64)
# In the order of the rounds. The slow ones come last: what they still have to do then is no burden to the next.
STARTS: dict[str, Start] = {**LIGHT, "valetkey": valetkey.valetkey, **HEAVY}


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured."""

    rounds: int = 5
    seconds: float = 3
    streams: int = 40
    idle: int = 1000
    waves: int = 10
    bytes: int = 100_000_000
    new: int = 200
    rotation_seconds: float = 60


QUICK = Size(rounds=1, seconds=1, streams=5, idle=100, waves=2, bytes=20_000_000, new=20, rotation_seconds=3)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One run: what takes part, and who asks."""

    on: Cores
    crew: Crew
    size: Size
    direct: Target
    targets: Sequence[Target]

    @property
    def everyone(self) -> list[Target]:
        return [self.direct, *self.targets]

    @property
    def gateway(self) -> Valetkey | None:
        return next((target for target in self.targets if isinstance(target, Valetkey)), None)


# --- what takes part --------------------------------------------------------------------------


@contextlib.contextmanager
def upstreams(folder: Path, on: Cores) -> Iterator[Upstreams]:
    authority = CertificateAuthority(folder)
    authority.context()
    (pair,) = folder.glob("leaf-*.pem")
    key = "sk-bench-" + secrets.token_hex(20)
    fast, slow = free_port(), free_port()
    config, settings = folder / "upstream.conf", folder / "upstream.json"
    for path in (config, settings):
        path.touch(mode=0o600)
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(user + nginx_upstream(folder, port=fast, pair=pair, key=key))
    settings.write_text(Settings(port=slow, pair=str(pair), key=key).text())
    nginx = [tool("nginx"), "-p", str(folder), "-e", "stderr", "-c", str(config)]
    python = [sys.executable, "-m", "bench.upstream", str(settings)]
    environ = {"PYTHONPATH": str(ROOT)}
    with (
        started("fast upstream", nginx, core=on.load, ports=[fast], log=folder / "fast.log"),
        started("slow upstream", python, core=on.load, ports=[slow], log=folder / "slow.log", environ=environ),
    ):
        there = Upstreams(fast=fast, slow=slow, key=key, ca_file=authority.ca_file)
        for name, address in (("fast upstream", there.direct().fast), ("slow upstream", there.direct().slow)):
            assert address is not None
            refuses(name, address)
        yield there


def refuses(name: str, address: Address) -> None:
    """See that another key is refused: else a good answer would prove nothing."""
    connection = Connection(replace(address, token="sk-another-" + secrets.token_hex(20)))
    answer = connection.ask()
    connection.close()
    if answer.status != 401:
        raise SystemExit(f"the {name} answers {answer.status} to a key that is not its own")


def prove(target: Target, *, log: Path, seconds: float = 60) -> None:
    """See that the answer is the upstream's, which it gives to the real key alone. Some take a while to get ready."""
    end = time.monotonic() + seconds
    while True:
        connection = Connection(target.fast)
        answer = connection.ask()
        connection.close()
        # LiteLLM makes an answer of its own of it.
        if answer.status == 200 and (answer.body == ANSWER or b"valet key opens the door" in answer.body):
            return
        if time.monotonic() > end:
            said = log.read_text(errors="replace")[-2000:]
            raise SystemExit(f"{target.name} answers {answer.status} {answer.body[:300]!r}\n{said}")
        time.sleep(0.5)


@contextlib.contextmanager
def taking_part(names: Sequence[str], there: Upstreams, folder: Path, on: Cores) -> Iterator[list[Target]]:

    with contextlib.ExitStack() as stack:
        targets = []
        for name in names:
            place = folder / name
            place.mkdir(mode=0o700)
            target = stack.enter_context(STARTS[name](there, place, on))
            prove(target, log=place / f"{name}.log")
            if isinstance(target, Valetkey):
                refuses("gateway", target.fast)
            targets.append(target)
        yield targets


# --- parts ------------------------------------------------------------------------------------


def part_load(bench: Bench) -> None:
    everyone = bench.everyone
    if bench.gateway:
        everyone.append(replace(bench.gateway, name="Valetkey, no head like another", varied=True))
    for connections in CONNECTIONS:
        taken: dict[str, list[Load]] = {target.name: [] for target in everyone}
        for round_ in range(bench.size.rounds + 1):
            for target in everyone:
                figures = wrk(
                    target.fast,
                    connections=connections,
                    seconds=bench.size.seconds if round_ else 1,
                    on=bench.on,
                    proxy=target.process,
                    varied=target.varied,
                )
                if round_:  # the first one warms up
                    taken[target.name].append(figures)
        report.load(taken, connections=connections, seconds=bench.size.seconds)
        report.ratios(taken, connections=connections)


def part_latency(bench: Bench) -> None:
    taken: dict[str, list[float]] = {target.name: [] for target in bench.everyone}
    for _ in range(bench.size.rounds):
        for target in bench.everyone:
            one = bench.crew.run(paced, target.fast, seconds=bench.size.seconds, per_second=100)
            taken[target.name] += one
    report.latency(taken)


def part_streams(bench: Bench) -> None:
    addresses = {target.name: target.slow for target in bench.everyone if target.slow}
    if bench.gateway:
        addresses["Valetkey, intercepted"] = bench.gateway.slow_tunnelled
    taken: dict[str, Latencies] = bench.crew.run(
        first_bytes, addresses, streams=bench.size.streams, events=10, interval=0.02
    )
    report.streams(taken)


def part_idle(bench: Bench) -> None:
    taken: dict[str, Waves] = {}
    for target in bench.targets:
        ways = {target.name: target.slow}
        if isinstance(target, Valetkey):
            ways["Valetkey, intercepted"] = target.slow_tunnelled
        if target.process is None or target.name == "mitmproxy":  # a thousand of its streams take minutes
            continue
        for name, address in ways.items():
            if address is not None:
                taken[name] = bench.crew.run(
                    idle_waves,
                    address,
                    process=target.process,
                    streams=bench.size.idle,
                    waves=bench.size.waves,
                    settle=1.0,
                )
    report.idle(taken, streams=bench.size.idle)


def part_bytes(bench: Bench) -> None:
    taken: dict[str, list[tuple[float, float]]] = {}
    for _ in range(bench.size.rounds):
        for target in bench.everyone:
            if target.slow is not None:
                taken.setdefault(target.name, []).append(bench.crew.run(big_bodies, target.slow, size=bench.size.bytes))
    report.big_bodies(taken, size=bench.size.bytes)


def part_intercepted(bench: Bench) -> None:
    if bench.gateway:
        for connections in CONNECTIONS:
            # Both together come to more than a million within a minute, which is the most that a key may have.
            token = bench.gateway.new_key(f"intercepted-{connections}")
            kept = intercepted(
                bench.crew,
                bench.gateway.with_key(token),
                connections=connections,
                rounds=bench.size.rounds,
                seconds=bench.size.seconds,
            )
            report.intercepted(kept, connections=connections)
        ways = {"base URL": bench.gateway.fast, "intercepted": bench.gateway.tunnelled}
        report.new_connections(
            {way: bench.crew.run(new_connections, address, count=bench.size.new) for way, address in ways.items()}
        )


def part_revocation(bench: Bench) -> None:
    if bench.gateway:
        seconds = max(4.0, bench.size.seconds)
        report.revocation(
            [
                revocation(bench.crew, bench.gateway, connections=64, seconds=seconds, name=f"revoked-{number}")
                for number in range(bench.size.rounds)
            ]
        )


def part_rotation(bench: Bench) -> None:
    if bench.gateway:
        figures = rotation(
            bench.crew, bench.gateway, connections=16, seconds=bench.size.rotation_seconds + 0.6, every=0.1
        )
        report.rotation(figures, seconds=bench.size.rotation_seconds)


PARTS: dict[str, Callable[[Bench], None]] = {
    "load": part_load,
    "latency": part_latency,
    "streams": part_streams,
    "idle": part_idle,
    "bytes": part_bytes,
    "intercepted": part_intercepted,
    "revocation": part_revocation,
    "rotation": part_rotation,  # the last one: it leaves another credential behind
}


@contextlib.contextmanager
def own_key(bench: Bench, name: str) -> Iterator[Bench]:
    """Give Valetkey's client a valet key of its own for one part, so that no limit is reached by several together."""
    if bench.gateway is None:
        yield bench
        return
    gateway = bench.gateway
    token = gateway.new_key(name, per_minute=valetkey.FEW if name == "idle" else valetkey.FULL_LOAD)
    yield replace(bench, targets=[gateway.with_key(token) if one is gateway else one for one in bench.targets])
    gateway.revoke(name)


def profile(bench: Bench) -> None:
    """Let py-spy watch the gateway under load, with 64 connections: first its Python alone, then all of it.

    With the C code it stops the process for longer than it lets it run, so only the shares count.
    """
    target = bench.gateway or next(target for target in bench.targets if target.name in ("mitmproxy", "LiteLLM"))
    assert target.process is not None
    seconds = max(5, round(bench.size.seconds * bench.size.rounds))
    for title, options in (("Python", ["--rate", "500"]), ("with C", ["--rate", "250", "--native"])):
        with tempfile.NamedTemporaryFile(prefix="bench-", suffix=".txt") as raw:
            argv = [str(VENV / "bin/py-spy"), "record", "--pid", str(target.process.pid), "--duration", str(seconds)]
            argv += ["--function", "--format", "raw", "--output", raw.name, *options]
            spy = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            figures = wrk(target.fast, connections=64, seconds=seconds + 1, on=bench.on, proxy=target.process)
            _, complaint = spy.communicate()
            if spy.returncode:
                raise SystemExit(f"py-spy: {complaint.decode(errors='replace')[-500:]}")
            report.profile(f"{target.name}, {title}", figures, Path(raw.name).read_text())


def main() -> None:
    arguments = _arguments()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    compileall.compile_dir(str(ROOT / "src"), quiet=2)
    more_files()
    on = cores()
    size = QUICK if arguments.quick else Size()
    size = Size(**{**vars(size), **{k: v for k in ("rounds", "seconds") if (v := getattr(arguments, k)) is not None}})
    names = [name for name in STARTS if name in (arguments.only or STARTS)]
    if "valetkey" in names and (why := valetkey.missing()):
        print(f"not here: {why}")
        names = [name for name in names if name != "valetkey"]
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, {os.cpu_count()} cores, {' '.join(names)}"
    )
    with tempfile.TemporaryDirectory(prefix="valetkey-bench-") as place, Crew(on) as crew:
        folder = Path(place)
        with upstreams(folder, on) as there, taking_part(names, there, folder, on) as targets:
            bench = Bench(on=on, crew=crew, size=size, direct=there.direct(), targets=targets)
            parts = (
                {"profile": profile} if arguments.profile else {part: PARTS[part] for part in arguments.parts or PARTS}
            )
            for name, part in parts.items():
                with own_key(bench, name) as one:
                    part(one)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.gateway", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=" ".join(PARTS))
    parser.add_argument("--only", action="append", choices=[*STARTS], help="may be given several times")
    parser.add_argument("--rounds", type=int, help="of each measurement; 5 if nothing is said")
    parser.add_argument("--seconds", type=float, help="of load in each round; 3 if nothing is said")
    parser.add_argument("--quick", action="store_true", help="little of everything, in a minute")
    parser.add_argument("--profile", action="store_true", help="watch Valetkey under load with py-spy instead")
    arguments = parser.parse_args()
    if unknown := [part for part in arguments.parts if part not in PARTS]:
        parser.error(f"no part is called {' or '.join(unknown)}; there are {', '.join(PARTS)}")
    return arguments


if __name__ == "__main__":
    main()

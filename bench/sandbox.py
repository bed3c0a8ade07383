"""Prints what a sandbox costs: from its launch to the command's first instruction, and from its end to ours.

    python -m bench.sandbox

Medians of 20, interleaved with a plain `bwrap` of the same system folders and with `podman run` of the same image, as
whoever runs it; root becomes `nobody`. Goal: podman's sandbox within 1.2 times of a plain `podman run`, from start to
end. It is held against three: as bare as it may be, with no network, and isolated as one would do it by hand.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from tests.support.containers import IMAGE, podman_storage
from valetkey.sandbox import AGENT_HOME, WORKSPACE
from valetkey.sandboxes import sandbox_for
from valetkey.testing.place import Place, sandbox_place

RUNS = 20
PLAIN = (
    "bwrap --unshare-all --ro-bind /usr /usr --symlink usr/bin /bin --symlink usr/lib /lib --symlink usr/lib64 /lib64"
)
# One byte as its first act, then waits for the end of its stdin: which is how its last act is known.
COMMAND = ("/bin/sh", "-c", "echo; read end")
BARE, NO_NETWORK = "`podman run --rm -i`", "`podman run --rm -i --network=none`"
ISOLATED = "`podman run` with options for the same isolation"


def through(start: Callable[[int, int], Callable[[], object]]) -> tuple[float, float]:
    """Give the milliseconds to the first byte, and from the last act to the return of the wait."""
    their_in, our_in = os.pipe()
    our_out, their_out = os.pipe()
    began = time.perf_counter()
    wait = start(their_in, their_out)
    os.close(their_in)
    os.close(their_out)
    if not os.read(our_out, 1):
        raise SystemExit("it ended without a byte: see what it said")
    first = time.perf_counter()
    os.close(our_in)
    wait()
    ended = time.perf_counter()
    os.close(our_out)
    return (first - began) * 1000, (ended - first) * 1000


def plain(stdin: int, stdout: int) -> Callable[[], object]:
    return subprocess.Popen([*PLAIN.split(), *COMMAND], stdin=stdin, stdout=stdout).wait


def sandboxed(place: Place) -> Callable[[int, int], Callable[[], object]]:
    return lambda stdin, stdout: place.sandbox.start(place.spec(*COMMAND), stdin=stdin, stdout=stdout, stderr=2).wait


# The two limits are there because podman would raise its own, which it may not everywhere.
PODMAN_RUN = ("podman", "run", "--rm", "-i", "--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096")


def podman_run(*options: str) -> Callable[[int, int], Callable[[], object]]:
    return lambda stdin, stdout: (
        subprocess.Popen([*PODMAN_RUN, *options, IMAGE, *COMMAND], stdin=stdin, stdout=stdout).wait
    )


def isolated(place: Place) -> Iterator[str]:
    """Give the options by which one would hold a command like the sandbox does, by hand, without a way to a gateway."""
    yield from ["--network=none", "--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--tmpfs=/tmp"]
    owner = place.workspace.stat()
    yield f"--user={owner.st_uid}:{owner.st_gid}"
    for source, target in ((place.home, AGENT_HOME), (place.workspace, WORKSPACE)):
        yield f"--volume={source}:{target}"
    yield f"--workdir={WORKSPACE}"


def main() -> None:
    print(f"{datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, {os.cpu_count()} cores, ms")
    print("\n| | first instruction: median | max | end: median | max |\n|---|---|---|---|---|")
    with (
        podman_storage() as podman,
        sandbox_place(sandbox_for("bubblewrap")) as place,
        sandbox_place(sandbox_for("podman", image=IMAGE)) as contained,
    ):
        os.environ |= podman.environ
        ways = {
            "plain `bwrap`": plain,
            "the bubblewrap sandbox": sandboxed(place),
            BARE: podman_run(),
            NO_NETWORK: podman_run("--network=none"),
            ISOLATED: podman_run(*isolated(contained)),
            "the podman sandbox": sandboxed(contained),
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for number in range(RUNS + 1):
            for name, start in ways.items():
                figures = through(start)
                if number:  # the first round is not counted
                    taken[name].append(figures)
    for name, figures_of in taken.items():
        firsts, ends = zip(*figures_of, strict=True)
        row = (statistics.median(firsts), max(firsts), statistics.median(ends), max(ends))
        print(f"| {name} | " + " | ".join(f"{figure:.1f}" for figure in row) + " |")
    for other in (BARE, NO_NETWORK, ISOLATED):
        ratio = whole(taken["the podman sandbox"]) / whole(taken[other])
        print(f"\nfrom start to end, the podman sandbox takes {ratio:.2f} times what {other} does (goal: 1.2)")
    print(f"\nload: {' '.join(f'{load:.1f}' for load in os.getloadavg())}")


def whole(figures: list[tuple[float, float]]) -> float:
    return statistics.median(first + end for first, end in figures)


if __name__ == "__main__":
    main()

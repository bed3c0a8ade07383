"""Servers as subprocesses, all under one agreement.

Settings go in as one line of JSON on standard input (so no secret is in argv), the addresses come out as one line of
JSON on standard output, and the process ends when its standard input does; so none outlives the tests.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

__all__ = ["node_server", "running"]

_SUPPORT = Path(__file__).parent
# Loading the model takes a second; this is for a machine under load.
_PATIENCE_SECONDS = 60


def node_server(name: str) -> list[str]:
    """Give the command for `tests/support/<name>/server.mjs`."""
    node = shutil.which("node")
    if node is None or not (_SUPPORT.parents[1] / "node_modules").is_dir():
        raise RuntimeError("the test servers are not installed: run `make install` (it needs Node 20 and npm)")
    return [node, "--no-warnings", str(_SUPPORT / name / "server.mjs")]


@contextlib.contextmanager
def running(command: Sequence[str], settings: Mapping[str, object]) -> Iterator[dict[str, str]]:
    """Start it, give what it says of itself, and end it by its process id."""
    with tempfile.TemporaryFile() as log:
        # The test's own proxy and home settings are none of the server's business.
        environ = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environ)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(settings).encode() + b"\n")
            process.stdin.flush()
            said = process.stdout.readline()
            if not said:
                process.wait(_PATIENCE_SECONDS)
                log.seek(0)
                raise RuntimeError(f"{Path(command[-1]).name} did not start:\n{log.read().decode(errors='replace')}")
            yield json.loads(said)
        finally:
            process.stdin.close()
            try:
                process.wait(_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()

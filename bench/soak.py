"""Runs the long trials in full: kills, storms, stopped holders, fuzzers. docs/soak.md keeps the figures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TRIALS = (
    "tests/e2e/test_trials.py",
    "tests/e2e/test_gateway_peers.py",
    "tests/e2e/test_run_many.py",
    "tests/e2e/test_run_long.py",
    "tests/contract/test_gateway_fuzz.py",
    "tests/contract/test_stores.py",
    "tests/unit",
)


def main() -> int:
    os.environ["VALETKEY_SOAK"] = "1"
    command = [sys.executable, "-m", "pytest", "-s", "-m", "soak or not soak", "--timeout", "3600", *TRIALS]
    return subprocess.run(command, cwd=Path(__file__).parents[1], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

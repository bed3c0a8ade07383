"""Packages of others: installed beside Valetkey, into a folder of their own, and their tests as they would run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["environ_of", "install", "run_tests"]


def install(source: Path, site: Path) -> Path:
    """Build a package by its own pyproject.toml and put it into `site`, without asking any index."""
    uv = [str(Path(sys.executable).with_name("uv")), "pip", "install", "--quiet", "--python", sys.executable]
    options = ["--offline", "--no-deps", "--no-build-isolation", "--no-config", "--target", str(site)]
    done = subprocess.run(
        [*uv, *options, str(source)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "UV_CACHE_DIR": str(source.parent / "uv-cache")},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return site


def environ_of(site: Path) -> dict[str, str]:
    """Give an environment in which that package is installed."""
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}


def run_tests(folder: Path, site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in a folder, with warnings as errors."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", *words, str(folder)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=environ_of(site),
        timeout=240,
    )

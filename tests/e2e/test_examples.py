"""The example of a package by somebody else, installed beside Valetkey as it would be, passes its own tests."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.packages import environ_of, install, run_tests
from valetkey.config import Paths

EXAMPLE = Path(__file__).parents[2] / "examples" / "valetkey-acme"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    copied = shutil.copytree(EXAMPLE, tmp_path / "source", ignore=shutil.ignore_patterns("__pycache__"))
    return install(copied, tmp_path / "site")


def test_the_package_passes_and_is_found_by_its_entry_point(site: Path, tmp_path: Path) -> None:
    tests = tmp_path / "source" / "tests"
    done = run_tests(tests, site)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
    # Its declaration is what these tests are about: another one does not pass.
    shipped = site / "valetkey_acme" / "acme.toml"
    shipped.write_text(shipped.read_text().replace('x-acme-key = "{key}"', 'x-acme-key = "none"'))
    assert run_tests(tests, site, "-k", "TestAcme").returncode == 1


def test_the_command_line_shows_where_it_came_from(site: Path, tmp_path: Path) -> None:
    home = Paths(home=tmp_path / "home").home
    done = subprocess.run(
        [sys.executable, "-m", "valetkey", "providers", "show", "acme", "--json"],
        capture_output=True,
        text=True,
        check=False,
        env={**environ_of(site), "VALETKEY_HOME": str(home), "HOME": str(tmp_path)},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert str(site / "valetkey_acme") in done.stdout


def test_a_provider_with_its_tests_takes_less_than_fifty_lines() -> None:
    files = [*EXAMPLE.rglob("*.py"), *(EXAMPLE / "valetkey_acme").glob("*.toml")]
    assert {file.name for file in files} == {"__init__.py", "acme.toml", "test_acme.py"}
    written = [line for file in files for line in file.read_text().splitlines() if line.strip()]
    assert len(written) < 50

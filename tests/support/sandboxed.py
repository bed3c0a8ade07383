"""Sandboxes by their names, and what is run in them run outside too."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping

import pytest

from tests.support.containers import IMAGE
from valetkey.sandbox import Sandbox
from valetkey.sandboxes import sandbox_for
from valetkey.testing.command_line import Done
from valetkey.testing.place import PYTHON, ordinary


def sandbox_here(name: str, request: pytest.FixtureRequest) -> Sandbox:
    """Give the sandbox of this id for one test, with an engine and an image where it is one of containers."""
    if not sandbox_for(name).own_programs:
        return sandbox_for(name)
    request.getfixturevalue(name)
    return sandbox_for(name, image=IMAGE)


def on_host(code: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Done:
    """Run some Python outside, as whom the sandbox's commands run as."""
    ids = ordinary()
    done = subprocess.run(
        [PYTHON, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={"PATH": "/usr/bin:/bin", **(environment or {})},
        user=None if ids is None else ids[0],
        group=None if ids is None else ids[1],
        extra_groups=None if ids is None else [],
        timeout=60,
    )
    return Done(status=done.returncode, out=done.stdout, err=done.stderr)

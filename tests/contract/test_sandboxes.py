"""What every sandbox promises (valetkey.testing.suites.sandboxes), run for each there is."""

from __future__ import annotations

import os

import pytest

from tests.support.sandboxed import sandbox_here
from valetkey.errors import UsageError
from valetkey.sandbox import Sandbox
from valetkey.sandboxes import SANDBOXES, sandbox_for
from valetkey.testing.place import Place
from valetkey.testing.suites.sandboxes import SandboxSuite


# docker has the same command line, and an engine that no test starts: tests/unit/test_container.py has more of it.
@pytest.fixture(params=sorted(set(SANDBOXES) - {"docker"}))
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    return sandbox_here(request.param, request)


class TestSandboxes(SandboxSuite):
    """Each of them."""

    def mounts(self, place: Place) -> list[str]:
        """Leave out what containers of other tests have at this moment."""
        own = (str(place.root), os.environ.get("XDG_RUNTIME_DIR", str(place.root)).removesuffix("/own"))
        return [
            line
            for line in super().mounts(place)
            if "valetkey-podman-" not in line or any(root in line for root in own)
        ]


def test_it_goes_by_its_name(sandbox: Sandbox) -> None:
    assert sandbox_for(sandbox.id).id == sandbox.id


def test_there_is_no_other() -> None:
    with pytest.raises(UsageError, match="nowhere"):
        sandbox_for("nowhere")

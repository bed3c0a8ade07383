"""What every sandbox promises (valetkey.testing.suites.sandboxes), run for each there is."""

from __future__ import annotations

import pytest

from valetkey.errors import UsageError
from valetkey.sandbox import Sandbox
from valetkey.sandboxes import SANDBOXES, sandbox_for
from valetkey.testing.suites.sandboxes import SandboxSuite


@pytest.fixture(params=sorted(SANDBOXES))
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    return sandbox_for(request.param)


class TestSandboxes(SandboxSuite):
    """Each of them."""


def test_it_goes_by_its_name(sandbox: Sandbox) -> None:
    assert type(sandbox_for(sandbox.id)) is type(sandbox)


def test_there_is_no_other() -> None:
    with pytest.raises(UsageError, match="nowhere"):
        sandbox_for("nowhere")

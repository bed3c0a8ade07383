"""The code of docs/testing.md, as a project of somebody else has it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.packages import run_tests
from valetkey import testing
from valetkey.testing import FakeProvider, RunningProvider, plugin, suites

DOCS = (Path(__file__).parents[2] / "docs" / "testing.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_passes(example: str, tmp_path: Path) -> None:
    (tests := tmp_path / "tests").mkdir()
    (tests / "test_theirs.py").write_text(example)
    done = run_tests(tests, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_every_name_of_the_kit_is_there_and_told() -> None:
    named = set(re.findall(r"`(\w+)", DOCS))
    promised = {name for module in (testing, suites) for name in module.__all__}
    assert all(hasattr(testing, name) for name in testing.__all__)
    assert promised - named - {"RunningProvider", "GatewayProcess", "CommandLine", "SteppedClock", "serving"} == set()
    fixtures = {name for name, made in vars(plugin).items() if type(made).__name__ == "FixtureFunctionDefinition"}
    assert len(fixtures) == 6
    assert fixtures <= named
    builders = {n for n in vars(FakeProvider) if n[0] != "_" and callable(getattr(FakeProvider, n)) and n != "start"}
    assert builders <= named
    assert {n for n in vars(RunningProvider) if n[0] != "_" and n != "method"} <= named

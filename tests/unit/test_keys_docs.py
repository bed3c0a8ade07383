"""docs/keys.md is held to what is there: its numbers and its options."""

from __future__ import annotations

import re
from pathlib import Path

import click

from valetkey.cli.key import create
from valetkey.gateway import approvals, keys, ring

TEXT = " ".join((Path(__file__).parents[2] / "docs" / "keys.md").read_text(encoding="utf-8").split())


def test_the_numbers_are_those_of_the_code() -> None:
    for number in (
        f"for {approvals.WAIT_SECONDS:.0f} s",
        f"At most {approvals.MOST_OF_A_CLIENT} requests of a key wait at a time and {approvals.MOST} in all",
        f"every {ring._TRY_AGAIN_SECONDS:.0f} s",
        f"ended {keys._KEPT_AFTER_ITS_END.days} days ago",
    ):
        assert number in TEXT


def test_the_options_are_there() -> None:
    known = {option for parameter in create.params if isinstance(parameter, click.Option) for option in parameter.opts}
    named = set(re.findall(r"--[a-z][a-z-]+", TEXT))
    assert named <= known
    assert named >= {"--grant", "--policy", "--expires", "--rpm", "--tokens-per-day", "--concurrent", "--name"}

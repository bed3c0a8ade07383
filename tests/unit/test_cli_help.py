"""What `valetkey --help` shows."""

from __future__ import annotations

import click

from valetkey.agents import BUILT_IN
from valetkey.cli import COMMANDS, GROUPS
from valetkey.cli.frame import valetkey


def test_each_command_stands_in_one_group() -> None:
    names = [name for group in GROUPS.values() for name in group]
    # `auth` is another name for most of what it has, and the only one for `auth switch`.
    assert sorted(names) == sorted([*COMMANDS, "auth", ""])


def test_help_fits_80_columns_and_has_every_agent() -> None:
    text = click.Context(valetkey, info_name="valetkey", terminal_width=80).get_help()
    lines = text.splitlines()
    assert [line for line in lines if len(line) > 80 or line.rstrip().endswith("...")] == [
        "Usage: valetkey [OPTIONS] COMMAND [ARGS]..."
    ]
    described = [line.split()[0] for line in lines if line.startswith("  ") and line[2:3].isalpha()]
    assert {*COMMANDS, *BUILT_IN} <= set(described)
    assert lines.index("Run agents:") < lines.index("Log in:")

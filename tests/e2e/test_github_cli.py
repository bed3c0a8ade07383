"""GitHub's own command line as an ambient source: a pointer is stored, and what `gh` says is read at each use."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command_line import CommandLine
from valetkey.testing.canary import holding

FIRST, SECOND = ("gh" + "o_" + letter * 36 for letter in "ab")


@pytest.fixture
def line(home: Path, tmp_path: Path) -> CommandLine:
    """A command line beside whose `gh` says what is in the file `said`, and keeps its words in `asked`."""
    tools = tmp_path / "tools"
    tools.mkdir()
    gh = tools / "gh"
    gh.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nexec cat {tmp_path}/said\n')
    gh.chmod(0o700)
    opened = CommandLine(home=home)
    opened.environ["PATH"] = f"{tools}:{opened.environ['PATH']}"
    return opened


def test_what_gh_says_now_is_used_and_never_stored(line: CommandLine, home: Path, tmp_path: Path) -> None:
    said = tmp_path / "said"
    said.write_text(f"{FIRST}\n")
    done = line("login", "github", "--method", "gh", "--no-verify")
    assert done.status == 0, done.err
    assert line("token", "github").out == f"{FIRST}\n"
    said.write_text(f"{SECOND}\n")
    assert line("token", "github").out == f"{SECOND}\n"
    shown = line("exec", "-p", "github", "--", "sh", "-c", 'echo "$GH_TOKEN"', environ={"GITHUB_TOKEN": "of another"})
    assert shown.out == f"{SECOND}\n"
    assert set((tmp_path / "asked").read_text().splitlines()) == {"auth token --hostname github.com"}
    assert [file for token in (FIRST, SECOND) for file in holding(token, home.rglob("*"))] == []


def test_a_logged_out_gh_is_told_and_says_which_command(line: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "said").write_text(f"{FIRST}\n")
    assert line("login", "github", "--method", "gh", "--no-verify").status == 0
    (tmp_path / "said").write_text("")
    done = line("token", "github")
    assert (done.status, done.out) == (1, "")
    assert "valetkey: hint: " in done.err
    assert FIRST not in done.err


@pytest.mark.parametrize("variable", ["GH_TOKEN", "GITHUB_TOKEN"])
def test_without_a_login_the_environment_serves(line: CommandLine, variable: str) -> None:
    done = line("token", "github", "--json", environ={variable: FIRST})
    assert (done.json["token"], done.json["source"]) == (FIRST, "environment")

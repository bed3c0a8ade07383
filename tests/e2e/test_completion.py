"""Completion in a real shell: the script that is printed completes commands and options."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine

# What bash does at the Tab key, for the words typed so far.
_TAB = """
eval "$(valetkey completion bash)"
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
"$(complete -p valetkey | sed 's/.*-F \\([^ ]*\\).*/\\1/')" valetkey "${COMP_WORDS[COMP_CWORD]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (("valetkey", "prov"), {"providers"}),
        (("valetkey", "providers", "re"), {"remove"}),
        (("valetkey", "login", "--no-"), {"--no-browser", "--no-verify", "--no-color"}),
    ],
)
def test_bash_completes_what_there_is(home: Path, tmp_path: Path, typed: tuple[str, ...], offered: set[str]) -> None:
    program = tmp_path / "valetkey"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m valetkey "$@"\n')
    program.chmod(0o700)
    environ = {
        **CommandLine(home=home).environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-c", _TAB, "bash", *typed], env=environ, capture_output=True, text=True, timeout=30, check=True
    )
    assert set(done.stdout.split()) == offered, done.stderr
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(home: Path, shell: str) -> None:
    done = CommandLine(home=home)("completion", shell, "--json")
    assert (done.status, done.json["shell"], f"{shell}_complete" in done.json["script"]) == (0, shell, True)

"""The demo, with its real model: what README's first command shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command_line import CommandLine


@pytest.fixture
def line(home: Path, tmp_path: Path) -> CommandLine:
    folder = tmp_path / "temporary"
    folder.mkdir()
    return CommandLine(home=home, environ={"TMPDIR": str(folder)})


@pytest.mark.xdist_group("model")
def test_the_demo_shows_each_command_before_it_runs_and_leaves_nothing(
    line: CommandLine, home: Path, tmp_path: Path
) -> None:
    done = line("demo", patience_seconds=90)
    assert done.status == 0, done.err
    shown = [text for text in done.out.splitlines() if text.startswith("$ ")]
    words = ["valetkey providers add", "valetkey login", "valetkey list", "valetkey ask", "grep -rl"]
    assert [word in text for word, text in zip(words, shown, strict=True)] == [True] * 5, shown
    answer = done.out.partition(shown[3])[2].partition(shown[4])[0]
    assert any(c.isalpha() for c in answer)
    assert "(nothing: the key is in none of the" in done.out
    next_commands = done.out.partition("Next, for a provider of yours:")[2].split("\n  ")[1:]
    assert [text.split()[:2] for text in next_commands] == [
        ["valetkey", "login"],
        ["valetkey", "ask"],
        ["valetkey", "exec"],
    ]
    assert list((tmp_path / "temporary").iterdir()) == []
    assert list(home.iterdir()) == []


@pytest.mark.xdist_group("model")
def test_the_demo_in_json_is_one_document(line: CommandLine) -> None:
    done = line("demo", "--json", patience_seconds=90)
    assert (done.status, done.json) == (0, {"answered": True})

"""The demo, with its real model: what README's first command shows."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command_line import ORDINARY, CommandLine
from tests.support.gateway_process import ended, until
from valetkey import serving

PATIENCE_SECONDS = 90
README = Path(__file__).parents[2] / "README.md"
WORDS = [
    "valetkey providers add",
    "valetkey login",
    "valetkey list",
    "valetkey ask",
    "valetkey up",
    "valetkey key create",
    "curl",
    "valetkey trace",
    "valetkey key revoke",
    "curl",
    "cat workspace/look.sh",
    "valetkey run",
    "valetkey runs list",
    "valetkey down",
    "grep -rl",
]
# How the demo's own credential begins: it is made anew each time.
CREDENTIAL = re.compile(r"sk-demo-[0-9a-f]{8}")


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


@pytest.fixture
def line(home: Path, temporary: Path) -> CommandLine:
    return CommandLine(home=home, environ={"TMPDIR": str(temporary)}, through=ORDINARY)


@pytest.mark.xdist_group("model")
def test_the_demo_shows_each_command_before_it_runs_and_leaves_nothing(
    line: CommandLine, home: Path, temporary: Path
) -> None:
    done = line("demo", patience_seconds=PATIENCE_SECONDS)
    assert done.status == 0, done.err
    shown = [text for text in done.out.splitlines() if text.startswith("$ ")]
    assert [word in text for word, text in zip(WORDS, shown, strict=True)] == [True] * len(WORDS), shown
    after = {
        text: done.out.partition(text)[2].partition(f"\n{following}")[0]
        for text, following in zip(shown, [*shown[1:], "Next"], strict=True)
    }
    asked, by_key, traced, refused, inside, searched = (after[shown[n]] for n in (3, 6, 7, 9, 11, 14))
    assert any(c.isalpha() for c in asked)
    # The same model, the same question: the same words, by another way.
    assert asked.strip() in by_key
    assert by_key.rstrip().endswith("\n200")
    assert "demo@default" in traced
    assert "/v1/chat/completions" in traced
    assert "has been revoked" in refused
    assert refused.rstrip().endswith("\n401")
    environment, _, answered = inside.partition("the host cannot be reached\n")
    assert "HTTPS_PROXY=http://127.0.0.1:3128" in environment
    assert asked.strip() in answered
    assert "(nothing: the key is in none of the" in searched
    next_commands = done.out.partition("Next, for a provider of yours:")[2].split("\n  ")[1:]
    assert [text.split()[:2] for text in next_commands] == [
        ["valetkey", "login"],
        ["valetkey", "run"],
        ["valetkey", "ask"],
        ["valetkey", "up"],
    ]
    assert not CREDENTIAL.search(done.out + done.err)
    assert list(temporary.iterdir()) == []
    assert list(home.iterdir()) == []
    assert_shown(README.read_text(encoding="utf-8"), done.out.splitlines())


def assert_shown(text: str, lines: list[str]) -> None:
    """See that README's excerpt is what the demo prints, in its order, but for numbers and what `…` stands for."""
    (excerpt,) = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    rest = iter(lines)
    for promised in excerpt.splitlines():
        if promised != "…":
            form = re.sub(r"\d+", r"\\d+", re.escape(promised)).replace("…", ".*")
            assert any(re.fullmatch(form, line) for line in rest), promised


@pytest.mark.xdist_group("model")
def test_the_demo_in_json_is_one_document_and_needs_no_curl(line: CommandLine, temporary: Path) -> None:
    # Without bubblewrap or unshare on PATH there is no sandbox either.
    done = line("demo", "--json", environ={"PATH": str(temporary)}, patience_seconds=PATIENCE_SECONDS)
    told = {"answered": True, "refused": True, "sandboxed": False}
    assert (done.status, done.json) == (0, told), done.err
    assert "without a run in a sandbox" not in done.out
    assert not CREDENTIAL.search(done.err)


@pytest.mark.xdist_group("model")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root is made an ordinary user for it")
def test_root_sees_a_run_too_by_an_ordinary_user_of_a_namespace(home: Path, temporary: Path) -> None:
    line = CommandLine(home=home, environ={"TMPDIR": str(temporary)})
    done = line("demo", "--json", patience_seconds=PATIENCE_SECONDS)
    assert (done.status, done.json["sandboxed"]) == (0, True), done.err
    assert "the host cannot be reached" in done.err
    assert not CREDENTIAL.search(done.err)
    assert list(temporary.iterdir()) == []


@pytest.mark.xdist_group("model")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_stopped_leaves_no_gateway(line: CommandLine, temporary: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "valetkey", "demo"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=line.environ,
        start_new_session=True,
    )
    try:

        def running() -> dict[str, object] | None:
            return next(filter(None, (serving.running(str(home)) for home in temporary.glob("*/home"))), None)

        until(running)
        about = running()
        assert about is not None
        # A terminal tells its Ctrl-C to all that run on it; other signals come to one process.
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        assert process.wait(PATIENCE_SECONDS) == 130
    finally:
        process.kill()
        process.wait()
    pid = about["pid"]
    assert isinstance(pid, int)
    assert ended(pid)
    assert list(temporary.iterdir()) == []

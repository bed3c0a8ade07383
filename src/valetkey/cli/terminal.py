"""Reads lines and keys from the terminal in a way that Ctrl-C always ends."""

from __future__ import annotations

import asyncio
import os
import re
import select
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

__all__ = ["hear_prompts", "keys", "split"]

# A signal that comes just before a blocking read is noticed after it; so nothing here blocks for longer.
_LISTEN_SECONDS = 0.2
_READ_BYTES = 64 * 1024
# CSI and SS3 (ECMA-48): ESC [ or ESC O, then up to a letter; everything else is a key by itself.
_KEY = re.compile(r"\x1b[\[O][^A-Za-z]*[A-Za-z]|.", re.DOTALL)


def hear_prompts() -> None:
    """Let click.prompt and click.confirm read through this module."""
    click.termui.visible_prompt_func = _line
    click.termui.hidden_prompt_func = _hidden_line


def _line(prompt: str) -> str:
    sys.stderr.write(prompt)
    sys.stderr.flush()
    received = _wait()
    if not received:
        raise EOFError
    return received.decode(errors="replace").rstrip("\r\n")


def _hidden_line(prompt: str) -> str:
    with _changed(lambda flags: flags & ~termios.ECHO):
        line = _line(prompt)
    sys.stderr.write("\n")
    return line


@contextmanager
def keys() -> Iterator[Iterator[str]]:
    """Give the keys that are pressed, arrow keys as their escape sequences; ends with input."""
    with _changed(lambda flags: flags & ~(termios.ECHO | termios.ICANON)):
        yield _keys()


def _keys() -> Iterator[str]:
    while received := _wait():
        yield from split(received.decode(errors="replace"))


def split(read: str) -> list[str]:
    """Give the keys in what one read brought: a fast typist's or a paste's characters, a key's escape sequence."""
    return _KEY.findall(read)


def _wait() -> bytes:
    """Wait for what is typed: a line, or keys where lines are off; b"" at the end of input."""
    while not select.select([sys.stdin], [], [], _LISTEN_SECONDS)[0]:
        if _is_cancelled():
            raise KeyboardInterrupt
    return os.read(sys.stdin.fileno(), _READ_BYTES)


def _is_cancelled() -> bool:
    """Whether Ctrl-C was pressed while an event loop runs: asyncio then cancels the task, and raises nothing here."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return False
    return task is not None and task.cancelling() > 0


@contextmanager
def _changed(change: Callable[[int], int]) -> Iterator[None]:
    """Change the terminal's local modes for a while. What was typed ahead stays."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    after = [*before]
    after[tty.LFLAG] = change(before[tty.LFLAG])
    termios.tcsetattr(descriptor, termios.TCSADRAIN, after)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)

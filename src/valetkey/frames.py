"""Lets errors leave without the frames below, whose variables hold secrets."""

from __future__ import annotations

import sys
from types import TracebackType

from valetkey.errors import ValetkeyError

__all__ = ["DroppedFrames"]


class DroppedFrames:
    """Within `with DroppedFrames():` an error of ours, and what it came from, loses the frames it went through.

    A traceback shows lines of code, but what reports errors (Sentry, rich, cgitb) shows each frame's variables too, and
    where a request is sent they hold its headers. What happened is in message and hint. Any other error keeps its
    frames: somebody has to find the fault.
    """

    def __enter__(self) -> None:
        # What the caller is dealing with already, and what that came from, is the caller's.
        self._before = sys.exception()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if isinstance(error, ValetkeyError):
            seen: list[BaseException] = []
            self._drop(error, seen)

    def _drop(self, error: BaseException | None, seen: list[BaseException]) -> None:
        if error is None or error is self._before or error in seen:
            return
        seen.append(error)
        error.__traceback__ = None
        self._drop(error.__cause__, seen)
        self._drop(error.__context__, seen)

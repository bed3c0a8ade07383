"""Gives freed memory back to the system once many connections have gone.

The C library keeps what is freed, and the next connections touch other pages of it: uvloop has a buffer of 256 KiB for
each TLS connection and writes to little of it. Over waves of connections nearly all pages would become ours.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

__all__ = ["Heap", "give_back"]

# Each has 50 to 80 kB; for fewer it is not worth some milliseconds in which nobody is served.
_MANY = 100


# malloc_trim(3): only glibc has it, and needs it.
_trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back() -> None:
    """Have the C library return every page that holds nothing."""
    if _trim is not None:
        _trim(0)


class Heap:
    """Watches the number of open connections, and calls `give_back` where it has fallen by many."""

    def __init__(self, give_back: Callable[[], None] = give_back) -> None:
        self._give_back = give_back
        self._most = 0

    def look(self, connections: int) -> None:
        """Compare with the most that there were since memory was given back."""
        self._most = max(self._most, connections)
        if self._most - connections >= _MANY:
            self._most = connections
            self._give_back()

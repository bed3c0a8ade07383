"""Takes a change out of a file that was changed elsewhere since, line by line; or says that it cannot be done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from difflib import SequenceMatcher

from valetkey.errors import SetupRefused

__all__ = ["Facts", "taken_back"]

# What a file of settings says, each with its place: `("env", "NAME"), "value"`.
Facts = Counter[tuple[tuple[str, ...], str]]


def taken_back(before: bytes, after: bytes, now: bytes, *, facts_of: Callable[[bytes], Facts]) -> bytes | None:
    """Give `now` without what made `after` of `before`; None where somebody changed those lines, or lines beside them.

    `facts_of` reads such a file. What it says then has to be what it says now without what the change said: a line
    that somebody put into a section of ours must not end up in another one.
    """
    found = _by_lines(*(content.splitlines(keepends=True) for content in (before, after, now)))
    if found is None:
        return None
    try:
        then, changed, present = facts_of(before), facts_of(after), facts_of(now)
        if facts_of(found) != (present - (changed - then)) + (then - changed):
            return None
    except SetupRefused:
        return None
    return found


def _by_lines(old: list[bytes], new: list[bytes], current: list[bytes]) -> bytes | None:
    """Put the old lines back where the new ones stand, with the lines on either side that they had then.

    At an edge of the file others may have added theirs.
    """
    moved = _places(new, current)
    result = list(current)
    stretches = [s for s in SequenceMatcher(None, old, new, autojunk=False).get_opcodes() if s[0] != "equal"]
    # From the end, so that the places before it stay what they are.
    for _, old_from, old_to, new_from, new_to in reversed(stretches):
        inside = [moved.get(line) for line in range(new_from, new_to)]
        first = moved.get(new_from - 1, -1 if new_from == 0 else None)
        last = moved.get(new_to, len(current) if new_to == len(new) else None)
        if first is None or last is None:
            return None
        if inside and inside[0] is not None:
            first = first if new_from > 0 else inside[0] - 1
            last = last if new_to < len(new) else inside[0] + len(inside)
        if inside != list(range(first + 1, last)):
            return None
        result[first + 1 : last] = old[old_from:old_to]
    return b"".join(result)


def _places(new: list[bytes], current: list[bytes]) -> dict[int, int]:
    """Map the number of each line that is still there to where it is now."""
    blocks = SequenceMatcher(None, new, current, autojunk=False).get_matching_blocks()
    return {block.a + i: block.b + i for block in blocks for i in range(block.size)}

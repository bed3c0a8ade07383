"""A change as a person sees it: a unified diff, without secrets that stand beside what is changed."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from valetkey.log import REMOVED, redact

__all__ = ["unified"]

# The value of a key that is called so, in JSON, TOML and INI files: docker keeps passwords under "auth".
_VALUE = re.compile(
    r"(?i)((?!\w*helper)\w*(?:auth|token|secret|passw|credential|key)\w*[\"']?\s*[:=]\s*)(?![\s{\[]*$).+"
)


def unified(path: Path, before: bytes | None, after: bytes | None, *, ours: bytes) -> str:
    """Give the diff. `ours` is the content whose new lines we wrote: only those are shown as they are."""
    old, new = (_lines(content) for content in (before, after))
    foreign = {_bare(line) for line in (_lines(after) if ours == before else _lines(before))}
    shown = [
        line if line.startswith(("---", "+++", "@@")) or _bare(line[1:]) not in foreign else _masked(line)
        for line in difflib.unified_diff(
            old,
            new,
            str(path) if before is not None else "/dev/null",
            str(path) if after is not None else "/dev/null",
            lineterm="",
        )
    ]
    return redact("\n".join(shown))


def _lines(content: bytes | None) -> list[str]:
    return (content or b"").decode(errors="replace").splitlines()


def _bare(line: str) -> str:
    return line.strip().rstrip(",")


def _masked(line: str) -> str:
    return _VALUE.sub(rf"\1{REMOVED}", line)

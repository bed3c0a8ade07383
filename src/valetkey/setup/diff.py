"""A change as a person sees it: a unified diff, without secrets that stand beside what is changed."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from valetkey.log import REMOVED, redact
from valetkey.setup.plan import KEY_SHOWN

__all__ = ["unified"]

# A value whose name says that it is secret, in JSON, TOML and INI files: docker keeps passwords under "auth".
_VALUE = re.compile(
    r"""(?ix)
    (?P<name> [\w.-]* (?:auth|token|secret|passw|credential|key) [\w.-]* )
    (?P<between> ["']? \s* [:=] \s* )
    (?P<value> "(?:[^"\\]|\\.)*" | '[^']*' | \[[^\]]*\]? | [^\s{\["',}][^,}]* )
    """
)
# Names of programs that give a secret are none.
_PROGRAM = re.compile(r"(?i)helper|process")


def unified(path: Path, before: bytes | None, after: bytes | None) -> str:
    """Give the diff; empty where nothing changes."""
    old, new = (str(path) if content is not None else "/dev/null" for content in (before, after))
    lines = difflib.unified_diff(_lines(before), _lines(after), old, new, lineterm="")
    return redact("\n".join(_VALUE.sub(_shown, line) for line in lines))


def _lines(content: bytes | None) -> list[str]:
    return (content or b"").decode(errors="replace").splitlines()


def _shown(found: re.Match[str]) -> str:
    if _PROGRAM.search(found["name"]) or KEY_SHOWN in found["value"]:
        return found[0]
    return f"{found['name']}{found['between']}{REMOVED}"

"""Canaries: secrets that a test makes up, and where they show: as they are, in a URL, or within anything in base64."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

__all__ = ["assert_no_canary", "holding", "holds", "made"]


def made(start: str = "canary-") -> str:
    """Give a secret that nobody else has."""
    return start + os.urandom(20).hex()


def holds(secret: str, data: bytes) -> bool:
    """Tell whether it is in there."""
    return any(form in data for form in _forms(secret))


def holding(secret: str, paths: Iterable[Path]) -> list[str]:
    """Name the files that it is in."""
    return [str(path) for path in paths if path.is_file() and holds(secret, path.read_bytes())]


def assert_no_canary(secret: str, *places: Path | str | bytes) -> None:
    """Look for it in files, in all that lies below folders, and in text. Raises: AssertionError, which has no secret.

    A `str` is text; a path has to be a Path, and there: what is not there holds nothing and shows nothing.
    """
    found: list[str] = []
    for place in places:
        match place:
            case Path():
                if not place.exists():
                    raise AssertionError(f"{place} is not there, so nothing is known about it")
                found += holding(secret, [place, *place.rglob("*")])
            case str():
                found += ["a text"] if holds(secret, place.encode(errors="surrogateescape")) else []
            case bytes():
                found += ["some bytes"] if holds(secret, place) else []
    if found:
        raise AssertionError(f"the canary shows in {', '.join(found)}")


def _forms(secret: str) -> list[bytes]:
    # What base64 makes of it depends on what stands before it: on three offsets (RFC 4648 section 4).
    encoded = [base64.b64encode(b"\0" * before + secret.encode())[4:-4] for before in range(3)]
    # URLs have an alphabet of their own for it (section 5).
    for_urls = [form.replace(b"+", b"-").replace(b"/", b"_") for form in encoded]
    return [secret.encode(), quote(secret, safe="").encode(), *encoded, *for_urls]

"""Where a secret shows: as it is, or within anything in base64."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path

__all__ = ["holding", "holds"]


def holds(secret: str, data: bytes) -> bool:
    """Tell whether it is in there."""
    return any(form in data for form in _forms(secret))


def holding(secret: str, paths: Iterable[Path]) -> list[str]:
    """Name the files that it is in."""
    return [str(path) for path in paths if path.is_file() and holds(secret, path.read_bytes())]


def _forms(secret: str) -> list[bytes]:
    # What base64 makes of it depends on what stands before it: on three offsets (RFC 4648 section 4).
    encoded = [base64.b64encode(b"\0" * before + secret.encode())[4:-4] for before in range(3)]
    return [secret.encode(), *encoded]

"""Writes an audit to a file that verifies by itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from valetkey.audit.reader import lines
from valetkey.audit.verify import Verified, verify

__all__ = ["export"]


def export(audit: Path, file: Path, *, client: str | None, key: str) -> Verified:
    """Write what is signed to a new file, mode 0600, and give what is in it: it is verified as it is written.

    Raises: AuditBroken, AuditUnwritable, FileExistsError, OSError.
    """
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with open(descriptor, "wb") as out:

            def written() -> Iterator[bytes]:
                for line in lines(audit, client=client, signed_alone=True):
                    out.write(line)
                    yield line

            found = verify(written(), key=key, anchor=None, whole=True)
            out.flush()
            os.fsync(descriptor)
    except BaseException:
        os.unlink(file)
        raise
    return found

"""A store that can be locked, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from valetkey.errors import StoreLocked
from valetkey.testing.memory_store import MemoryStore


class LockableStore(MemoryStore):
    """One whose documents cannot be read while it is locked."""

    locked = False

    def documents(self, kind: str, *, limit: int = 50) -> Sequence[tuple[str, str, datetime]]:
        if self.locked:
            raise StoreLocked("the store is locked", hint="run `valetkey unlock`")
        return super().documents(kind, limit=limit)

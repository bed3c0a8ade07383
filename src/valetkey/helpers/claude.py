"""Claude Code's apiKeyHelper: one key on standard output. `cli/fast.py` answers the simple case before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from valetkey.access import sole_secret
from valetkey.freshness import LEAST_LEFT
from valetkey.helpers.lasting import lasting

if TYPE_CHECKING:
    from valetkey.access import Access
    from valetkey.broker import Broker
    from valetkey.credential import Secret

__all__ = ["answer"]


async def answer(broker: Broker, name: str) -> tuple[Access, Secret]:
    """Give the key. Claude Code keeps it for 5 minutes, so it lives 6 at least. Raises: what `lasting` raises."""
    access = await lasting(broker, name, least=LEAST_LEFT)
    return access, sole_secret(access)

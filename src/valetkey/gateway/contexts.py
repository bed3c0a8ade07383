"""Keeps what was minted for hosts: as many as there is room for, each until shortly before its end, each made once."""

from __future__ import annotations

import asyncio
import ssl
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta

from valetkey.clock import Clock

__all__ = ["Contexts", "Minted"]

# A connection that is made with the old one may last; a new one should not begin with it.
_BEFORE_THE_END = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Minted:
    """A server's context for one host, and when its certificate begins and ends."""

    context: ssl.SSLContext
    begins: datetime
    ends: datetime


class Contexts:
    """At most `limit` of them; the one that was not asked for longest goes first.

    `mint` runs in one thread of its own, never on the loop: two hosts wait for each other, and nobody else does.
    """

    def __init__(self, mint: Callable[[str], Minted], clock: Clock, *, limit: int) -> None:
        self._mint = mint
        self._clock = clock
        self._limit = limit
        self._kept: OrderedDict[str, Minted] = OrderedDict()
        self._under_way: dict[str, asyncio.Task[Minted]] = {}
        self._thread: ThreadPoolExecutor | None = None
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, host: str) -> ssl.SSLContext | None:
        """Give what is kept for this host and can still be used."""
        found = self._kept.get(host)
        if found is None:
            return None
        now = self._clock.now()
        # The clock may have been set back too: a certificate that begins later is refused by everybody.
        if not found.begins <= now < found.ends - _BEFORE_THE_END:
            del self._kept[host]
            return None
        self._kept.move_to_end(host)
        return found.context

    async def obtain(self, host: str) -> ssl.SSLContext:
        """Give it, made when it has to be; whoever asks meanwhile waits for the same one."""
        found = self.get(host)
        if found is not None:
            return found
        task = self._under_way.get(host)
        if task is None:
            task = self._under_way[host] = asyncio.create_task(self._make(host))
            task.add_done_callback(lambda done: self._done(host, done))
        # Whoever goes away does not take it from the others.
        return (await asyncio.shield(task)).context

    def forget(self) -> None:
        """Forget all of them, those that are being made too: they are of an authority that is no more."""
        self._kept.clear()
        self._under_way.clear()
        self._epoch += 1

    def close(self) -> None:
        """Let the thread go."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._thread = None

    async def _make(self, host: str) -> Minted:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="valetkey-mint")
        epoch = self._epoch
        minted = await asyncio.get_running_loop().run_in_executor(self._thread, self._mint, host)
        if epoch == self._epoch:
            self._kept[host] = minted
            while len(self._kept) > self._limit:
                self._kept.popitem(last=False)
        return minted

    def _done(self, host: str, task: asyncio.Task[Minted]) -> None:
        if self._under_way.get(host) is task:
            del self._under_way[host]
        if not task.cancelled():
            task.exception()  # somebody who went away does not look at it

"""The trace: one row a request, written by a thread of its own, so that no request ever waits for the disk."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

from valetkey.clock import Clock
from valetkey.errors import TraceTooNew, TraceUnreadable
from valetkey.gateway.row import Cleaner, Row, line
from valetkey.gateway.trace_file import TraceFile, TraceReader, is_damage

__all__ = ["Observer", "Row", "Trace", "TraceReader"]

# Gets each batch of rows, with nothing secret in them, in the trace's thread.
Observer = Callable[[Sequence[Row]], None]

_log = logging.getLogger(__name__)
_BATCH = 500
_BATCH_SECONDS = 0.2
# One transaction under load. Larger ones make the thread hold on to the interpreter for longer.
_MOST_AT_ONCE = 2000
# Two seconds of the fastest traffic; more would be memory spent on a disk that does not answer.
_ROOM = 32768
_UPKEEP_SECONDS = 60.0
_CLOSE_SECONDS = 10.0


class Trace:
    """Takes rows, and writes them to trace.db. Whatever goes wrong there is counted and logged, never raised."""

    def __init__(
        self,
        path: Path,
        clock: Clock,
        observers: Sequence[Observer] = (),
        *,
        keep_days: int = 14,
        max_rows: int = 1_000_000,
    ) -> None:
        self._clock = clock
        self._observers = tuple(observers)
        self._keep = timedelta(days=keep_days)
        self._max_rows = max_rows
        self._file = TraceFile(path)
        self._reader = TraceReader(path)
        self._cleaner = Cleaner()
        self._queue: deque[Row] = deque()
        self._room = _ROOM
        self._refused = 0
        self._lost = 0
        self._idle = False
        self._closing = False
        self._wake = threading.Event()
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._upkeep_at = clock.monotonic()
        self._told: set[str] = set()

    # --- what the engine calls -------------------------------------------------------------------

    def add(self, row: Row) -> None:
        """Take a row. Never waits; where there is no room the row is dropped and counted."""
        queue = self._queue
        waiting = len(queue)
        if waiting >= self._room:
            self._refused += 1
            return
        queue.append(row)
        if self._idle or waiting == _BATCH:
            self._idle = False
            self._wake.set()

    @property
    def dropped(self) -> int:
        """The number of rows that were not written, since the start."""
        return self._refused + self._lost

    # --- its life --------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to write."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="valetkey-trace", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Write what is there, and let go of the file. Rows that come later are dropped."""
        self._room = 0
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)
        # A disk that does not answer must not keep the process from ending.
        if self._writing.acquire(timeout=_CLOSE_SECONDS):
            try:
                self._write_all()
                with suppress(sqlite3.Error):
                    self._file.close()
            finally:
                self._writing.release()

    def name_clients(self, names: Mapping[str, str]) -> None:
        """Tell what clients are called, by their ids, so that the trace can be read without the store."""
        self._file.names = {client: line(name) for client, name in names.items()}

    def flush(self) -> None:
        """Write now what was added until now, in the caller's thread."""
        with self._writing:
            self._write_all()
            self._keep_up()

    def newest(self, client: str, limit: int) -> Sequence[Row]:
        """Write what was added until now, and give a client's newest rows, newest first; none where that fails."""
        self.flush()
        try:
            return [recorded.row for recorded in self._reader.newest(limit, client=client)]
        except (TraceUnreadable, OSError) as error:
            self._tell("reading", f"the trace cannot be read: {error}")
            return []

    def tokens_since(self, client: str, since: datetime) -> int:
        """Sum a client's tokens since that time, to the minute; 0 where the file cannot tell. It reads the file."""
        try:
            return self._reader.tokens_since(client, since)
        except (TraceUnreadable, OSError) as error:
            self._tell("reading", f"the trace cannot be read: {error}")
            return 0

    # --- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            self._idle = True
            # Looked at after `_idle` is set: a row that came before would wake nobody.
            if not self._queue:
                self._wake.wait(_UPKEEP_SECONDS)
            self._idle = False
            self._wake.clear()
            if self._queue and not self._closing:
                self._wake.wait(_BATCH_SECONDS)
            self._wake.clear()
            try:
                self.flush()
            except Exception as error:  # whatever it is, the next batch is tried again
                self._tell("fault", f"the trace has a fault: {type(error).__name__}")

    def _write_all(self) -> None:
        queue = self._queue
        while queue:
            batch = [queue.popleft() for _ in range(min(len(queue), _MOST_AT_ONCE))]
            rows = self._cleaned(batch)
            self._write(rows)
            for observe in self._observers:
                try:
                    observe(rows)
                except Exception as error:  # it may be anybody's
                    self._tell("observer", f"an observer of the trace failed: {type(error).__name__}")

    def _cleaned(self, batch: Sequence[Row]) -> list[Row]:
        try:
            return self._cleaner.clean(batch)
        except Exception:  # one of them is no row, by a fault of ours; the others are
            rows = []
            for row in batch:
                try:
                    rows += self._cleaner.clean([row])
                except Exception:
                    self._lost += 1
            self._tell("row", f"{len(batch) - len(rows)} rows of the trace could not be read")
            return rows

    def _write(self, rows: Sequence[Row], *, again: bool = True) -> None:
        try:
            self._file.write(rows)
            self._told.discard("writing")
        except TraceUnreadable as error:
            suffix = "newer" if isinstance(error, TraceTooNew) else "damaged"
            self._put_aside(error.message, suffix, rows if again else None)
        except sqlite3.Error as error:
            if is_damage(error):
                self._put_aside("the trace is damaged", "damaged", rows if again else None)
            else:
                self._lose(rows, str(error))
        except Exception as error:  # an integer that SQLite has no room for, a folder that may not be made
            self._lose(rows, getattr(error, "strerror", None) or type(error).__name__)

    def _put_aside(self, what: str, suffix: str, rows: Sequence[Row] | None) -> None:
        try:
            aside = self._file.put_aside(suffix)
        except (OSError, sqlite3.Error):
            self._lose(rows or (), f"{what} and cannot be moved aside")
            return
        _log.warning("%s: moved aside to %s, and begun anew", what, aside)
        if rows is not None:
            self._write(rows, again=False)

    def _lose(self, rows: Sequence[Row], why: str) -> None:
        self._lost += len(rows)
        self._tell("writing", f"the trace cannot be written, rows are dropped: {why}")
        with suppress(sqlite3.Error):
            self._file.close()

    def _keep_up(self) -> None:
        if self._clock.monotonic() < self._upkeep_at:
            return
        self._upkeep_at = self._clock.monotonic() + _UPKEEP_SECONDS
        before = (self._clock.now() - self._keep).timestamp()
        try:
            # In slices: what comes meanwhile is written in between.
            while self._file.forget(before=before, keep_rows=self._max_rows):
                self._write_all()
        except (sqlite3.Error, OSError, TraceUnreadable) as error:
            self._tell("writing", f"old rows of the trace cannot be deleted: {error}")

    def _tell(self, about: str, what: str) -> None:
        # Once, and not with every batch until the disk has room again.
        if about not in self._told:
            self._told.add(about)
            _log.warning("%s", what)

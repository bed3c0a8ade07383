"""Looks through a whole store for what is wrong with it, for `doctor`."""

from __future__ import annotations

from valetkey.errors import RecordDamaged
from valetkey.stores.sqlite import SqliteStore

__all__ = ["check"]

_PAGE = 500


def check(store: SqliteStore) -> list[str]:
    """Open every account and give a line for each thing that is wrong. Raises: what any call of the store may raise."""
    with store.database.reading() as connection:
        lines = [row[0] for row in connection.execute("PRAGMA integrity_check(20)").fetchall()]
    problems = [f"the database: {line}" for line in lines if line != "ok"]
    after = None
    while page := store.accounts(after=after, limit=_PAGE):
        for account in page:
            try:
                store.load(account.ref)
            except RecordDamaged as error:
                problems.append(f"{account.ref}: {error.message}")
        after = page[-1].ref
    return problems

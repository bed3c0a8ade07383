"""Looks through a whole store for what is wrong with it, for `doctor`."""

from __future__ import annotations

from valetkey.credential import CredentialRef
from valetkey.errors import InvalidName, RecordDamaged
from valetkey.stores.sqlite import SqliteStore

__all__ = ["check"]


def check(store: SqliteStore) -> list[str]:
    """Open every record and give a line for each thing that is wrong. Raises: what any call of the store may raise."""
    with store.database.reading() as connection:
        lines = [row[0] for row in connection.execute("PRAGMA integrity_check(20)").fetchall()]
        accounts = connection.execute("SELECT provider, account FROM account ORDER BY 1, 2").fetchall()
        documents = connection.execute("SELECT kind, id FROM document ORDER BY 1, 2").fetchall()
    problems = [f"the database: {line}" for line in lines if line != "ok"]
    for provider, account in accounts:
        try:
            store.load(CredentialRef(provider=provider, account=account))
        except RecordDamaged as error:
            problems.append(f"{provider}@{account}: {error.message}")
        except InvalidName:
            problems.append(f"{provider}@{account}: a stored account has a name that is none")
    for kind, name in documents:
        try:
            store.document(kind, name)
        except RecordDamaged as error:
            problems.append(f"{kind} {name}: {error.message}")
        except InvalidName:
            problems.append(f"{kind} {name}: a stored document has a name that is none")
    return problems

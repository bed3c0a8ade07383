"""Many accounts cost no more than few: every question has its index."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.stored import fill, opened, ref
from valetkey.credential import CredentialRef


@pytest.fixture
def plans(home: Path) -> list[str]:
    """Give the plan of each statement that the store sends while it is used."""
    store = opened(home)
    fill(store, 3)
    sent: list[str] = []
    with store.database.reading() as connection:
        connection.set_trace_callback(sent.append)
    store.load(ref(1))
    store.account(ref(1))
    store.accounts(after=ref(1), limit=2)
    store.accounts(provider="acme", after=ref(1), limit=2)
    store.accounts(provider="acme")
    store.default_account("acme")
    store.documents("note")
    store.document("note", "1")
    store.intent(ref(1))
    record = store.load(ref(1))
    assert record is not None
    store.save(record)
    store.delete(ref(1))
    store.set_default_account(ref(2))
    found = []
    with store.database.reading() as connection:
        connection.set_trace_callback(None)
        for sql in sent:
            if not sql.startswith(("BEGIN", "COMMIT", "PRAGMA", "--")):
                plan = connection.execute("EXPLAIN QUERY PLAN " + sql).fetchall()
                found += [f"{row[3]}: {sql}" for row in plan]
    store.close()
    return found


def test_no_question_reads_a_whole_table_or_sorts_it(plans: list[str]) -> None:
    assert len(plans) > 20
    # The one row of the newest data key, and the key sources' store id.
    small = ("SCAN data_key", "SCAN store")
    slow = [plan for plan in plans if "SCAN" in plan and not plan.startswith(small)]
    assert slow == []


def test_a_page_is_a_page(home: Path) -> None:
    store = opened(home)
    fill(store, 7)
    page = store.accounts(after=CredentialRef(provider="acme", account="a000003"), limit=2)
    assert [account.ref for account in page] == [ref(4), ref(5)]
    store.close()

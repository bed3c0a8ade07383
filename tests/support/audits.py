"""Audits to look at and to spoil, and the two verifiers."""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.support.stored import opened
from valetkey.audit import chain, reader
from valetkey.audit import verify as ours
from valetkey.audit.recorder import Audit
from valetkey.audit.signing import public_key, sign, signing_key
from valetkey.config import Paths
from valetkey.errors import AuditBroken
from valetkey.testing.clock import FakeClock

__all__ = ["MUTATIONS", "Lines", "by_both", "filled", "mutated", "resigned", "separate"]

Lines = list[bytes]

_spec = importlib.util.spec_from_file_location("verify_audit", Path(__file__).parents[2] / "docs" / "verify_audit.py")
assert _spec is not None
assert _spec.loader is not None
separate: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(separate)


def filled(home: Path, count: int = 24, *, signed_every: int = 6) -> tuple[str, Lines]:
    """Write so many entries of two clients, sign now and then and at the end, and give the key and the export."""
    paths, clock, store = Paths(home=home), FakeClock(), opened(home)
    audit = Audit(paths, clock)
    for number in range(1, count + 1):
        client = ("key:aaaaaaaaaaaa", "run:b1")[number % 2]
        audit.append("use", who=client, account=f"acme@a{number % 3}", detail={"minute": str(number), "n": number})
        clock.advance(7.25)
        if number % signed_every == 0 or number == count:
            sign(audit, store, paths, clock)
    key = public_key(signing_key(store, paths, clock))
    audit.close()
    store.close()
    return key, list(reader.lines(paths.audit))


def by_both(lines: Iterable[bytes], key: str, anchor: str | None = None) -> int | None:
    """Let both verify it, and give the entry at which it is broken; None where it is whole. They have to agree."""
    lines = list(lines)
    place = None if anchor is None else ours.Anchor.read(anchor)
    first: int | None = None
    second: int | None = None
    try:
        ours.verify(lines, key=key, anchor=place, whole=True)
    except AuditBroken as error:
        first = error.seq
    try:
        separate.verify(lines, key, None if place is None else (place.seq, place.hash))
    except separate.Broken as error:
        second = error.seq
    assert first == second, "the two verifiers differ"
    return first


# --- ways to spoil one -----------------------------------------------------------------------


def _change(lines: Lines, chance: random.Random, key: str) -> Lines:
    """Change a byte somewhere."""
    at = chance.randrange(len(lines))
    line = bytearray(lines[at])
    place = chance.randrange(len(line))
    line[place] ^= 1 << chance.randrange(8)
    return [*lines[:at], bytes(line), *lines[at + 1 :]]


def _retell(lines: Lines, chance: random.Random, key: str) -> Lines:
    """Change what an entry says, and compute every hash behind it anew, as one who knows the format."""
    at = chance.choice([n for n, line in enumerate(lines) if b'"entry"' in line])
    value = json.loads(lines[at])
    value["entry"]["account"] = "acme@somebody-else"
    return _linked([*lines[:at], chain.canonical(value) + b"\n", *lines[at + 1 :]])


def _delete(lines: Lines, chance: random.Random, key: str) -> Lines:
    """Take a line away."""
    at = chance.randrange(len(lines))
    return lines[:at] + lines[at + 1 :]


def _insert(lines: Lines, chance: random.Random, key: str) -> Lines:
    """Put a line in that stands elsewhere too."""
    at = chance.randrange(1, len(lines) + 1)
    return [*lines[:at], chance.choice(lines), *lines[at:]]


def _reorder(lines: Lines, chance: random.Random, key: str) -> Lines:
    """Let two lines change places."""
    one, other = sorted(chance.sample(range(len(lines)), 2))
    moved = [*lines]
    moved[one], moved[other] = moved[other], moved[one]
    return moved


def _truncate(lines: Lines, chance: random.Random, key: str) -> Lines:
    """Cut the end off, half of the time right behind a checkpoint."""
    ends = [n + 1 for n, line in enumerate(lines[:-1]) if b'"checkpoint"' in line]
    return lines[: chance.choice(ends) if chance.random() < 0.5 else chance.randrange(1, len(lines))]


def _resign(lines: Lines, chance: random.Random, key: str) -> Lines:
    """Change an entry, and make all hashes and signatures anew with another key."""
    return resigned(_retell(lines, chance, key), Ed25519PrivateKey.generate())


MUTATIONS = {
    mutation.__name__.lstrip("_"): mutation
    for mutation in (_change, _retell, _delete, _insert, _reorder, _truncate, _resign)
}


def mutated(lines: Lines, how: str, seed: int, key: str) -> Lines:
    """Give it spoilt in this way, and surely not as it was."""
    chance = random.Random(f"{how} {seed}")
    while (found := MUTATIONS[how](lines, chance, key)) == lines:
        pass
    return found


def _linked(lines: Sequence[bytes]) -> Lines:
    last, linked = chain.FIRST, []
    for line in lines:
        value = json.loads(line)
        if "hash" in value:
            content = value.get("content") or chain.content_hash(chain.canonical(value["entry"]))
            value["hash"] = last = chain.link(last, content)
        linked.append(chain.canonical(value) + b"\n")
    return linked


def resigned(lines: Sequence[bytes], key: Ed25519PrivateKey) -> Lines:
    """Give it with every checkpoint made anew by this key."""
    last, made = "", []
    for line in lines:
        value = json.loads(line)
        last = value.get("hash", last)
        if "checkpoint" in value:
            value["checkpoint"]["hash"] = last
            signed = key.sign(b"valetkey audit checkpoint\n" + chain.canonical(value["checkpoint"]))
            value["signature"] = signed.hex()
        made.append(chain.canonical(value) + b"\n")
    return made

"""Verifies an export of Valetkey's audit without Valetkey: `python verify_audit.py FILE --key HEX [--anchor SEQ:HASH]`.

Needs Python 3.9 and the package `cryptography`. An export is lines of canonical JSON (RFC 8785). The first says what it
is. Each of the others is one of these, its hashes in hex:

    {"entry": {…, "seq": N}, "hash": H}     an entry; its content hash is SHA-256 of its canonical JSON
    {"content": C, "hash": H}               somebody else's entry, of which only the content hash is told
    {"checkpoint": {"at", "hash", "number", "seq"}, "signature": S}

H is SHA-256 of the hash before it (32 zero bytes at first) and the content hash, as bytes. S is Ed25519 over the words
below and the checkpoint's canonical JSON. Checkpoints are numbered from 1; the last line is one. Entries that were cut
off behind an earlier checkpoint are noticed only with an anchor: the number and hash of an entry, kept elsewhere.

Exit status: 0 whole, 1 broken, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

HEADER = {"audit": "valetkey", "version": 1}
PURPOSE = b"valetkey audit checkpoint\n"
HEX_32 = re.compile("[0-9a-f]{64}")
HEX_64 = re.compile("[0-9a-f]{128}")
LONGEST_LINE = 1024 * 1024


class Broken(Exception):
    """The export is not as it was written; `seq` is the number of the first entry that shows it."""

    def __init__(self, seq: int, what: str) -> None:
        super().__init__(f"broken at entry {seq}: {what}")
        self.seq = seq


def canonical(value: object) -> bytes:
    """Write JSON as RFC 8785 does, of texts, whole numbers, true, false and null with ASCII keys: all that there is."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")).encode()


def read(line: bytes, seq: int) -> dict[str, Any]:
    """Give the object in a line that is canonical, byte by byte; any other form could hide a change."""
    if len(line) > LONGEST_LINE or not line.endswith(b"\n"):
        raise Broken(seq, "its line has no end")
    try:
        value = json.loads(line)
        if isinstance(value, dict) and canonical(value) + b"\n" == line:
            return value
    except (ValueError, RecursionError):
        pass
    raise Broken(seq, "its line is no canonical JSON")


def is_hex(pattern: re.Pattern[str], text: object) -> bool:
    """Say whether it is a text of lower-case hex digits of the right length."""
    return isinstance(text, str) and pattern.fullmatch(text) is not None


class Verifier:
    """Takes line after line; `seq` and `last` are the number and the hash of the entry that was reached."""

    def __init__(self, key: str, anchor: tuple[int, str] | None = None) -> None:
        self.key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
        self.anchor = anchor
        self.seq = 0
        self.last = "0" * 64
        self.checkpoints = 0
        self.signed = 0
        self.hidden = 0

    def take(self, value: dict[str, Any]) -> None:
        """Take the object of one line. Raises: Broken."""
        names = set(value)
        if names == {"entry", "hash"} and isinstance(value["entry"], dict):
            if value["entry"].get("seq") != self.seq + 1:
                raise Broken(self.seq + 1, "another entry stands in its place")
            self.link(hashlib.sha256(canonical(value["entry"])).digest(), value["hash"])
        elif names == {"content", "hash"} and is_hex(HEX_32, value["content"]):
            self.hidden += 1
            self.link(bytes.fromhex(value["content"]), value["hash"])
        elif names == {"checkpoint", "signature"} and isinstance(value["checkpoint"], dict):
            self.check(value["checkpoint"], value["signature"])
        else:
            raise Broken(self.seq + 1, "its line is neither an entry nor a checkpoint")

    def link(self, content: bytes, told: object) -> None:
        """Go on to the next entry, whose hash is said to be `told`."""
        self.seq += 1
        self.last = hashlib.sha256(bytes.fromhex(self.last) + content).hexdigest()
        if told != self.last:
            raise Broken(self.seq, "it was changed, or one before it is missing")
        if self.anchor is not None and self.anchor[0] == self.seq and self.anchor[1] != self.last:
            raise Broken(self.seq, "it is not what the anchor was taken of")

    def check(self, checkpoint: dict[str, Any], signature: Any) -> None:
        """See that a checkpoint is of this place, the next one, and signed with the key."""
        at = max(self.seq, 1)
        told = checkpoint.get("seq")
        if isinstance(told, int) and told > self.seq:
            raise Broken(self.seq + 1, "it is missing: a checkpoint of a later one is there")
        if told != self.seq or checkpoint.get("hash") != self.last:
            raise Broken(at, "its checkpoint is of another place")
        if checkpoint.get("number") != self.checkpoints + 1:
            raise Broken(at, "a checkpoint before it is missing, or was put in")
        if not is_hex(HEX_64, signature):
            raise Broken(at, "its checkpoint has no signature")
        try:
            self.key.verify(bytes.fromhex(signature), PURPOSE + canonical(checkpoint))
        except InvalidSignature:
            raise Broken(at, "its checkpoint is signed with another key, or was changed") from None
        self.checkpoints += 1
        self.signed = self.seq

    def end(self) -> None:
        """See that nothing is missing behind what came. Raises: Broken."""
        if self.anchor is not None and self.seq < self.anchor[0]:
            raise Broken(self.seq + 1, f"it was cut off: the anchor is of entry {self.anchor[0]}")
        if self.checkpoints == 0 or self.signed != self.seq:
            raise Broken(self.signed + 1, "no checkpoint signs it: the end was changed or cut off")


def verify(lines: Iterable[bytes], key: str, anchor: tuple[int, str] | None = None) -> Verifier:
    """Go through an export and give the Verifier at its end. Raises: Broken."""
    verifier = Verifier(key, anchor)
    given = iter(lines)
    if next(given, b"") != canonical(HEADER) + b"\n":
        raise Broken(0, "it does not begin as an export of the audit does")
    for line in given:
        verifier.take(read(line, verifier.seq + 1))
    verifier.end()
    return verifier


def main(argv: list[str] | None = None) -> int:
    """Verify the file that is named, and give the exit status."""
    parser = argparse.ArgumentParser(description="Verifies an export of Valetkey's audit.")
    parser.add_argument("file")
    parser.add_argument("--key", required=True, metavar="FILE|HEX", help="the public key: `valetkey audit show --key`")
    parser.add_argument("--anchor", metavar="SEQ:HASH", help="what an earlier export printed")
    options = parser.parse_args(argv)
    key, anchor = options.key, None
    if os.path.isfile(key):
        with open(key, encoding="ascii") as file:
            key = file.read().strip()
    if not is_hex(HEX_32, key):
        parser.error("the key is not 64 hex digits")
    if options.anchor is not None:
        number, _, told = options.anchor.partition(":")
        if not re.fullmatch("[1-9][0-9]{0,17}", number) or not is_hex(HEX_32, told):
            parser.error("the anchor is not of the form SEQ:HASH")
        anchor = int(number), told
    try:
        with open(options.file, "rb") as file:
            # A line without an end comes in pieces, and does not fill the memory.
            found = verify(iter(lambda: file.readline(LONGEST_LINE + 1), b""), key, anchor)
    except Broken as broken:
        print(broken, file=sys.stderr)
        return 1
    print(f"whole: {found.seq} entries ({found.hidden} of them bare hashes), {found.checkpoints} checkpoints")
    print(f"anchor, to keep elsewhere: {found.seq}:{found.last}")
    if anchor is None:
        print("what was cut off behind an earlier checkpoint is not noticed without --anchor")
    return 0


if __name__ == "__main__":
    sys.exit(main())

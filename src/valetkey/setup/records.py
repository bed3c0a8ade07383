"""What setups changed, kept in VALETKEY_HOME/setup (0600), so that they can be taken back byte for byte."""

from __future__ import annotations

import base64
import json
import os
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from valetkey.config import Paths
from valetkey.errors import SetupRefused
from valetkey.stores import modes

__all__ = ["Entry", "drop", "keep", "newest", "put_aside"]

_NAME = re.compile(r"[a-z]+-(\d{4,})\.json\Z")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One setup. `folders` are those that were made for the file; `key_id` is the valet key that is in it."""

    tool: str
    path: Path
    before: bytes | None = field(repr=False)
    after: bytes = field(repr=False)
    made_at: datetime
    folders: tuple[Path, ...] = ()
    key_id: str | None = None
    file: Path = Path()


def keep(paths: Paths, entry: Entry) -> Path:
    """Write it down, durable on return; give the file. Raises: StoreError."""
    folder = _folder(paths)
    modes.own_folder(str(paths.home))
    modes.own_folder(str(folder))
    content = json.dumps(
        {
            "v": 1,
            "tool": entry.tool,
            "path": str(entry.path),
            "before": None if entry.before is None else base64.b64encode(entry.before).decode(),
            "after": base64.b64encode(entry.after).decode(),
            "made_at": entry.made_at.isoformat(),
            "folders": [str(each) for each in entry.folders],
            "key_id": entry.key_id,
        }
    ).encode()
    number = max(_numbers(folder, entry.tool), default=0)
    while True:
        number += 1
        file = folder / f"{entry.tool}-{number:04}.json"
        try:
            modes.create_file(str(file), content)
        except FileExistsError:
            continue  # somebody else's, made just now
        return file


def newest(paths: Paths, tool: str) -> Entry | None:
    """Give the last setup of this tool that was not taken back. Raises: SetupRefused when it cannot be read."""
    folder = _folder(paths)
    numbers = _numbers(folder, tool)
    if not numbers:
        return None
    file = folder / f"{tool}-{max(numbers):04}.json"
    modes.check_file(str(file))
    try:
        found = json.loads(file.read_bytes())
        return Entry(
            tool=found["tool"],
            path=Path(found["path"]),
            before=None if found["before"] is None else base64.b64decode(found["before"], validate=True),
            after=base64.b64decode(found["after"], validate=True),
            made_at=datetime.fromisoformat(found["made_at"]),
            folders=tuple(Path(each) for each in found["folders"]),
            key_id=found["key_id"],
            file=file,
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SetupRefused(
            f"{file} cannot be read, so nothing can be taken back by it",
            hint="take the setting out by hand, then remove that file",
        ) from error


def drop(file: Path) -> None:
    """Forget a setup that was taken back."""
    file.unlink(missing_ok=True)
    modes.sync_folder(str(file.parent))


def put_aside(paths: Paths, entry: Entry, content: bytes) -> Path:
    """Keep what an undo by force is about to lose; give the file."""
    file = _folder(paths) / f"{entry.file.stem}-lost-{os.urandom(4).hex()}"
    modes.create_file(str(file), content)
    return file


def _folder(paths: Paths) -> Path:
    return paths.home / "setup"


def _numbers(folder: Path, tool: str) -> list[int]:
    if not folder.is_dir():
        return []
    found = (_NAME.match(path.name) for path in folder.glob(f"{tool}-*.json"))
    return [int(match[1]) for match in found if match is not None]

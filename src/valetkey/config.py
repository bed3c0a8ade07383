"""Settings: file, environment, paths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Paths"]


@dataclass(frozen=True, kw_only=True)
class Paths:
    """Where things are below VALETKEY_HOME."""

    home: Path

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Paths:
        """Take VALETKEY_HOME, else `.valetkey` in the home folder."""
        named = environ.get("VALETKEY_HOME")
        return cls(home=Path(named).expanduser() if named else Path(environ.get("HOME") or Path.home()) / ".valetkey")

    @property
    def database(self) -> Path:
        """The SQLite file of accounts."""
        return self.home / "valetkey.db"

    @property
    def key_file(self) -> Path:
        """The key file, where the key source is one."""
        return self.home / "store.key"

    @property
    def locks(self) -> Path:
        """One lock file a renewal."""
        return self.home / "locks"

    @property
    def providers(self) -> Path:
        """The user's own declarations."""
        return self.home / "providers"

    @property
    def config(self) -> Path:
        """The settings file."""
        return self.home / "config.toml"

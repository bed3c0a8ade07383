"""Settings: file, environment, paths.

settings.py says which there are. A value comes from the environment (`VALETKEY_` and the key in capitals,
dots as underscores), else from config.toml, else from the table.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from valetkey.errors import ConfigError
from valetkey.settings import (
    SETTINGS,
    Key,
    Value,
    absolute,
    checked,
    from_variable,
    is_table,
    setting_of,
    shown,
    unknown,
)

__all__ = ["Config", "Given", "Origin", "Paths", "load", "loaded"]


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
    def trace(self) -> Path:
        """The SQLite file of the gateway's requests."""
        return self.home / "trace.db"

    @property
    def audit(self) -> Path:
        """The SQLite file of what was done."""
        return self.home / "audit.db"

    @property
    def audit_key(self) -> Path:
        """The public key that the audit's checkpoints are signed with."""
        return self.home / "audit.pub"

    @property
    def key_file(self) -> Path:
        """The key file, where the key source is one."""
        return self.home / "store.key"

    @property
    def locks(self) -> Path:
        """One lock file a renewal."""
        return self.home / "locks"

    @property
    def run(self) -> Path:
        """What a running gateway keeps there: serving.py names it."""
        return self.home / "run"

    @property
    def runs(self) -> Path:
        """What is kept of runs, one folder each: runs/record.py names what is in it."""
        return self.home / "runs"

    def run_lock(self, run: str) -> Path:
        """The lock that the parent of a run holds for as long as it lives."""
        return self.runs / run / "lock"

    @property
    def providers(self) -> Path:
        """The user's own declarations."""
        return self.home / "providers"

    @property
    def config(self) -> Path:
        """The settings file."""
        return self.home / "config.toml"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a value comes from: `file:line`, an environment variable, or (both None) the table of defaults."""

    place: str | None = None
    variable: str | None = None

    def __str__(self) -> str:
        return self.place or self.variable or "default"


@dataclass(frozen=True, kw_only=True)
class Given:
    """A value that the file or the environment gives."""

    key: Key
    value: Value
    origin: Origin


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings, read and checked. `given` holds those that are not the default, by their written key."""

    paths: Paths
    given: Mapping[str, Given] = field(repr=False)

    def value(self, key: str) -> Value:
        """Give a setting's value. Raises: KeyError for a key that nothing documents."""
        if key in self.given:
            return self.given[key].value
        setting = setting_of(tuple(key.split(".")))
        if setting is None:
            raise KeyError(key)
        return setting.default

    def text(self, key: str) -> str | None:
        """Give the value of a text, path or choice; paths are absolute."""
        value = self.value(key)
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{key} is no text")
        return value

    def seconds(self, key: str) -> float:
        """Give the value of a time."""
        value = self.value(key)
        if not isinstance(value, int | float):
            raise TypeError(f"{key} is no number")
        return value

    def count(self, key: str) -> int:
        """Give the value of a number of things."""
        value = self.value(key)
        if not isinstance(value, int):
            raise TypeError(f"{key} is no number of things")
        return value

    def port(self, key: str) -> int:
        """Give the value of a port."""
        value = self.value(key)
        if not isinstance(value, int):
            raise TypeError(f"{key} is no port")
        return value

    def words(self, key: str) -> tuple[str, ...]:
        """Give the value of a list."""
        value = self.value(key)
        if not isinstance(value, tuple):
            raise TypeError(f"{key} is no list")
        return value

    def origins(self) -> dict[str, Origin]:
        """Give each key, those of the table first, with where its value comes from."""
        fixed = [setting.key for setting in SETTINGS if setting.variable is not None]
        keys = [*fixed, *sorted(key for key in self.given if key not in fixed)]
        return {key: self.given[key].origin if key in self.given else Origin() for key in keys}

    def client_ids(self) -> dict[str, str]:
        """Give the user's own OAuth client ids, by provider."""
        return {g.key[1]: str(g.value) for g in self.given.values() if g.key[0] == "providers"}

    def agent_program(self, agent: str) -> str | None:
        """Give the path of an agent's program, where one is named."""
        return next((str(g.value) for g in self.given.values() if g.key == ("agents", agent, "program")), None)

    def tables(self, *above: str) -> dict[str, dict[str, Given]]:
        """Give what stands in the tables below this key, by the name of each, in the order of the file."""
        found: dict[str, dict[str, Given]] = {}
        for given in self.given.values():
            if given.key[: len(above)] == above and len(given.key) == len(above) + 2:
                found.setdefault(given.key[-2], {})[given.key[-1]] = given
        return found

    def accounts_here(self, folder: Path) -> dict[str, str]:
        """Give the account of each provider for which this folder, or one above it, has a rule; the nearest wins."""
        rules = [(Path(g.key[1]), g.key[2], str(g.value)) for g in self.given.values() if g.key[0] == "folders"]
        rules = [rule for rule in rules if folder.is_relative_to(rule[0])]
        return {provider: account for _, provider, account in sorted(rules, key=lambda rule: len(rule[0].parts))}


def load(environ: Mapping[str, str]) -> Config:
    """Read config.toml and the environment.

    Raises: ConfigError; the message names file, line and key, or the variable.
    """
    return loaded(_read(Paths.of(environ).config), environ)


def loaded(content: bytes | None, environ: Mapping[str, str]) -> Config:
    """Read this as if it were config.toml, None for no file, and the environment. Raises: ConfigError."""
    paths = Paths.of(environ)
    given = {} if content is None else {shown(g.key): g for g in _settings_in(content, paths.config, environ)}
    for setting in SETTINGS:
        written = environ.get(setting.variable) if setting.variable else None
        if setting.variable and written:
            value = from_variable(setting, setting.variable, written, environ)
            key = tuple(setting.key.split("."))
            given[setting.key] = Given(key=key, value=value, origin=Origin(variable=setting.variable))
    config = Config(paths=paths, given=given)
    if config.value("store.key_source") == "command" and not config.value("store.key_command"):
        raise ConfigError(
            f"{given['store.key_source'].origin}: store.key_source is command, and store.key_command names none",
            hint='set store.key_command, such as ["op", "read", "op://vault/valetkey/key"]',
        )
    return config


# --- the file --------------------------------------------------------------------------------


def _read(path: Path) -> bytes | None:
    """Give the file's bytes, None where there is none. It can name a command to run, so it must be ours alone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}", hint="correct its mode or take it away"
        ) from error
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise ConfigError(f"{path} is not a file", hint=f"take it away: mv {path} {path}.old")
        if about.st_mode & stat.S_IWOTH:
            raise ConfigError(f"{path} can be written by everybody", hint=f"run `chmod go-w {path}`")
        if about.st_uid not in (0, os.geteuid()):
            raise ConfigError(f"{path} belongs to another user", hint=f"run `sudo chown $USER {path}`")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _settings_in(content: bytes, path: Path, environ: Mapping[str, str]) -> Iterator[Given]:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: the file is not UTF-8", hint="save it as UTF-8") from error
    import tomllib  # only where there is a file: `valetkey token` passes here

    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(
            f"{path}:{_line_of_fault(str(error), text)}: this is not TOML", hint="correct that line; see docs/config.md"
        ) from error
    lines = dict(reversed(list(_lines(text))))
    for key, value in _leaves(tables):
        # Of an inline table only the line where it begins is known.
        line = next((lines[key[:n]] for n in range(len(key), 0, -1) if key[:n] in lines), 1)
        setting = setting_of(key)
        if setting is None:
            raise unknown(key, f"{path}:{line}")
        if setting.key.startswith("folders."):
            key = (key[0], absolute(key[1], path.parent, environ), key[2])
        value = checked(setting, value, f"{path}:{line}: {shown(key)}", path.parent, environ)
        yield Given(key=key, value=value, origin=Origin(place=f"{path}:{line}"))


def _leaves(table: Mapping[str, object], above: Key = ()) -> Iterator[tuple[Key, object]]:
    for name, value in table.items():
        key = (*above, name)
        if not isinstance(value, dict) or not is_table(key):
            yield key, value
        else:
            yield from _leaves(value, key)


def _lines(text: str) -> Iterator[tuple[Key, int]]:
    """Find where each key is written; tomllib keeps no places."""
    import re

    header = re.compile(r"\s*\[\[?([^\[\]#]+)\]")
    assignment = re.compile(r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")
    word = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")
    table: Key = ()
    quotes = ""
    for number, line in enumerate(text.split("\n"), start=1):
        if not quotes:
            if found := header.match(line):
                table = tuple(part.strip("\"'") for part in word.findall(found[1]))
                yield table, number
            elif found := assignment.match(line):
                yield (*table, *(part.strip("\"'") for part in word.findall(found[1]))), number
        # Lines inside a text of several lines are no keys.
        for mark in re.findall(r'"""|' + "'''", line):
            quotes = "" if quotes == mark else quotes or mark


def _line_of_fault(message: str, text: str) -> int:
    """Take the line out of tomllib's message, which tells it in words ("at line 3", "at end of document")."""
    digits = message.partition("at line ")[2].partition(",")[0]
    return int(digits) if digits.isdigit() else max(1, len(text.splitlines()))

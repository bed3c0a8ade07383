"""Reads a TOML declaration into the types of provider.py, with errors that say where and what to write instead."""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import functools
import re
import tomllib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from valetkey.errors import InvalidProvider
from valetkey.provider import Provider, When
from valetkey.providers import rules
from valetkey.providers.fault import Fault, Key

__all__ = ["declared_fields", "read", "read_file"]

# The largest built-in declaration is 6 kB; a file of this size is something else.
MAX_FILE_BYTES = 256 * 1024
# Told by the catalogue, not by the file.
_NOT_DECLARED: dict[type, set[str]] = {Provider: {"origin", "path"}}

Origin = Literal["built-in", "user", "plugin"]


def read_file(path: Path, *, origin: Origin) -> Provider:
    """Read `<id>.toml`. Raises: InvalidProvider, naming file, line, key and what to write instead."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidProvider(
            f"{path} cannot be read: {(error.strerror or 'unknown error').lower()}", hint="check that the file is yours"
        ) from error
    if len(content) > MAX_FILE_BYTES:
        raise InvalidProvider(f"{path} is longer than {MAX_FILE_BYTES} bytes", hint="write one provider in one file")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise InvalidProvider(f"{path} is not UTF-8 text", hint="save the file as UTF-8") from None
    return read(text, path=path, origin=origin)


def read(text: str, *, path: Path, origin: Origin) -> Provider:
    """Read a declaration that belongs in `path`. Raises: InvalidProvider."""
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        what = str(error)[:1].lower() + str(error)[1:200]
        raise InvalidProvider(f"{path} is not TOML: {what}", hint="correct the syntax at that place") from error
    try:
        provider: Provider = _table(Provider, table, ())
        rules.check(provider, stem=path.stem)
    except Fault as fault:
        line = _line_of(text, fault.key)
        place = f"{path}, line {line}" if line else str(path)
        provider_id = table.get("id")
        raise InvalidProvider(
            f"{place}: {_dotted(fault.key)}{fault.message}",
            hint=fault.hint,
            provider=provider_id if isinstance(provider_id, str) else None,
        ) from None
    return dataclasses.replace(provider, origin=origin, path=str(path))


@functools.cache
def declared_fields(kind: type) -> dict[str, tuple[Any, bool]]:
    """Give what a table of this type may hold: key to (type, whether it must be there)."""
    hints = get_type_hints(kind)
    missing = dataclasses.MISSING
    return {
        f.name: (hints[f.name], f.default is missing and f.default_factory is missing)
        for f in dataclasses.fields(kind)
        if f.name not in _NOT_DECLARED.get(kind, ())
    }


def _table(kind: type, table: Mapping[str, object], key: Key) -> Any:
    if kind is When:
        table = _when(table, key)
    declared = declared_fields(kind)
    for name in table:
        if name not in declared:
            raise _unknown(name, list(declared), (*key, name))
    for name, (_, required) in declared.items():
        if required and name not in table:
            raise Fault((*key, name), "is missing", hint=f"write `{name} = …` there")
    return kind(**{name: _value(declared[name][0], value, (*key, name)) for name, value in table.items()})


def _when(table: Mapping[str, object], key: Key) -> dict[str, object]:
    # In a file the parameters' values stand beside the changes: { location = "global", base_url = "…" }.
    changes = {name: value for name, value in table.items() if name in ("base_url", "hosts")}
    values = {name: value for name, value in table.items() if name not in changes}
    if not values or not changes:
        raise Fault(
            key,
            "needs a parameter's value and a change",
            hint='write `{ location = "global", base_url = "https://…" }`',
        )
    return {"values": values, **changes}


def _unknown(name: str, known: list[str], key: Key) -> Fault:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return Fault(key, "is no key of the format", hint=f"write `{near[0]}` in its place")
    return Fault(key, "is no key of the format", hint=f"take it out; known here: {', '.join(sorted(known))}")


def _value(hint: Any, value: object, key: Key) -> object:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, Union):  # `Encoding | None` of an alias is the latter
        return _choice([a for a in arguments if a is not types.NoneType], value, key)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            options = ", ".join(f'"{a}"' for a in arguments)
            raise Fault(key, f"is {_shown(value)}, which is none of its values", hint=f"write one of {options}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise _wrong("a list, in brackets", value, key)
        return tuple(_value(arguments[0], item, (*key, i)) for i, item in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, dict):
            raise _wrong("a table, in braces", value, key)
        return {name: _value(arguments[1], item, (*key, name)) for name, item in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise _wrong("a table, in braces", value, key)
        return _table(hint, value, key)
    return _scalar(hint, value, key)


def _choice(kinds: list[Any], value: object, key: Key) -> object:
    if len(kinds) == 1:
        return _value(kinds[0], value, key)
    if type(value) in kinds:
        return _scalar(type(value), value, key)
    raise _wrong(" or ".join(_WORDS[kind] for kind in kinds if get_origin(kind) is not Literal), value, key)


_WORDS: dict[type, str] = {
    str: "text, in quotes",
    bool: "true or false",
    int: "a whole number, without quotes",
    datetime.date: "a date such as 2026-11-22, without quotes",
}


def _scalar(kind: type, value: object, key: Key) -> object:
    # By exact type: a bool is an int, and a datetime is a date.
    if type(value) is not kind:
        raise _wrong(_WORDS[kind], value, key)
    # In a header or a path a control character would begin something new.
    if isinstance(value, str) and any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in value):
        raise Fault(key, "holds a control character", hint="write it on one line, without control characters")
    return value


def _wrong(expected: str, value: object, key: Key) -> Fault:
    return Fault(key, f"is {_shown(value)}", hint=f"write {expected}")


def _shown(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return f'"{value[:40]}"'
        case int() | float():
            return f"the number {value}"
        case list():
            return "a list"
        case dict():
            return "a table"
        case _:
            return "a date or time"


def _dotted(key: Key) -> str:
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".") + (" " if key else "")


_HEADER = re.compile(r"\s*(\[\[?)\s*([A-Za-z0-9_.\-\s]+?)\s*\]\]?\s*(?:#.*)?$")
_ASSIGNMENT = re.compile(r"\s*([A-Za-z0-9_\-.]+|\"[^\"]*\")\s*=")


def _line_of(text: str, key: Key) -> int | None:
    """Find the line where this key, or the nearest table around it, is written. tomllib keeps no places."""
    found: dict[Key, int] = {}
    counts: dict[Key, int] = {}
    table: Key = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = _resolved(tuple(header[2].replace(" ", "").split(".")), counts, repeated=header[1] == "[[")
            found.setdefault(table, number)
        elif assignment := _ASSIGNMENT.match(line):
            name = assignment[1]
            parts = (name.strip('"'),) if name.startswith('"') else tuple(name.split("."))
            found.setdefault((*table, *parts), number)
    return next((found[key[:n]] for n in range(len(key), 0, -1) if key[:n] in found), None)


def _resolved(names: tuple[str, ...], counts: dict[Key, int], *, repeated: bool) -> Key:
    # `[[auth.parameters]]` belongs to the last `[[auth]]` before it.
    key: Key = ()
    for i, name in enumerate(names):
        key = (*key, name)
        if repeated and i == len(names) - 1:
            counts[key] = counts.get(key, -1) + 1
        if key in counts:
            key = (*key, counts[key])
    return key

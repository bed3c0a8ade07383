"""Writes a declaration as TOML: what the reader reads back to the same value."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from valetkey.provider import Provider, When
from valetkey.providers.reader import declared_fields

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["dumps"]

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def dumps(provider: Provider) -> str:
    """Give the text of `<id>.toml`. What has its default value is left out."""
    plain = _given(provider)
    del plain["api"], plain["auth"]
    sections = [_lines(plain), "[api]\n" + _lines(_given(provider.api))]
    sections += ["[[auth]]\n" + _lines(_given(method)) for method in provider.auth]
    return "\n".join(sections)


def _lines(table: Mapping[str, object]) -> str:
    return "".join(f"{_name(key)} = {_value(value)}\n" for key, value in table.items())


def _given(value: DataclassInstance) -> dict[str, object]:
    """Give the declared fields of a value that differ from their defaults."""
    declared = declared_fields(type(value))
    table: dict[str, object] = {}
    for f in dataclasses.fields(value):
        given = getattr(value, f.name)
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if f.name in declared and given is not None and given != default:
            table[f.name] = given
    return table


def _name(key: str) -> str:
    return key if _BARE.fullmatch(key) else _text(key)


def _text(value: str) -> str:
    # JSON's escapes are TOML's, but for DEL, which TOML wants escaped too.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case str():
            return _text(value)
        case datetime.date():
            return value.isoformat()
        case tuple():
            return "[" + ", ".join(map(_value, value)) + "]"
        case When():
            changes = {name: given for name, given in _given(value).items() if name != "values"}
            return _value({**value.values, **changes})
        case Mapping():
            return "{ " + ", ".join(f"{_name(k)} = {_value(v)}" for k, v in value.items()) + " }" if value else "{}"
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return _value(_given(value))
        case _:
            raise TypeError(f"a declaration holds no {type(value).__name__}")

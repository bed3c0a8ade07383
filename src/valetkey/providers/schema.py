"""Makes schema.json from the types, for editors: `python -m valetkey.providers.schema > schema.json`."""

from __future__ import annotations

import dataclasses
import datetime
import json
import sys
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

from valetkey.provider import Provider, When
from valetkey.providers.reader import declared_fields

__all__ = ["dumps", "schema"]


def schema() -> dict[str, object]:
    """Give the JSON Schema (2020-12) of a declaration, a date being text."""
    definitions: dict[str, object] = {}
    _table(Provider, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A Valetkey provider",
        "$ref": "#/$defs/Provider",
        "$defs": dict(sorted(definitions.items())),
    }


def dumps() -> str:
    """Give the text of schema.json."""
    return json.dumps(schema(), indent=2) + "\n"


def _table(kind: type, definitions: dict[str, object]) -> dict[str, object]:
    if kind.__name__ not in definitions:
        definitions[kind.__name__] = {}
        declared = declared_fields(kind)
        definition: dict[str, object] = {
            "type": "object",
            "description": " ".join((kind.__doc__ or "").split("\n\n")[0].split()),
            "properties": {name: _schema(hint, definitions) for name, (hint, _) in declared.items() if name != "values"}
            if kind is When
            else {name: _schema(hint, definitions) for name, (hint, _) in declared.items()},
            "required": [name for name, (_, required) in declared.items() if required and kind is not When],
            "additionalProperties": {"type": "string"} if kind is When else False,
        }
        definitions[kind.__name__] = definition
    return {"$ref": f"#/$defs/{kind.__name__}"}


def _schema(hint: Any, definitions: dict[str, object]) -> dict[str, object]:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, Union):
        kinds = [_schema(a, definitions) for a in arguments if a is not types.NoneType]
        return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _schema(arguments[1], definitions)}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _table(hint, definitions)
    return dict(_SCALARS[hint])


_SCALARS: dict[type, dict[str, object]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    datetime.date: {"type": "string", "format": "date"},
}


if __name__ == "__main__":
    sys.stdout.write(dumps())

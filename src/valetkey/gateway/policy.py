"""A policy: what a client may ask for with its grants, and the reader of the TOML file that says it."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from valetkey.errors import ConfigError
from valetkey.gateway import pattern
from valetkey.gateway.pattern import Pattern, WrongPattern

__all__ = ["GRANTED_ALONE", "Opening", "Policy", "Rule", "Verdict", "read", "read_file", "text_of", "with_rule"]

Verdict = Literal["allow", "deny", "ask"]
_VERDICTS: tuple[Verdict, ...] = ("allow", "deny", "ask")
_TOP = ("default", "other_hosts", "allow_off_limits", "rule")
_RULE = (*_VERDICTS, "name", "reason")
# A policy of a thousand rules has 100 kB; a file of this size is something else.
_MAX_FILE_BYTES = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One `[[rule]]`. `place` is `file:line`."""

    verdict: Verdict
    pattern: Pattern
    place: str
    name: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Opening:
    """One entry of `allow_off_limits`: what of a provider's off-limits paths the rules may decide on."""

    provider: str
    pattern: Pattern
    place: str


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What is allowed. The first rule that matches counts, else `default`; `other_hosts` for hosts without a grant."""

    default: Literal["allow", "deny"]
    other_hosts: Literal["allow", "deny"]
    rules: tuple[Rule, ...] = ()
    openings: tuple[Opening, ...] = ()
    file: str = ""


# Where nothing else was said: all that is granted, but for what is off limits, and no other host.
GRANTED_ALONE = Policy(default="allow", other_hosts="deny")


def read_file(path: Path) -> Policy:
    """Read a policy. Raises: ConfigError, naming file, line and key."""
    return read(text_of(path), file=str(path))


def text_of(path: Path) -> str:
    """Give what stands in the file of a policy. Raises: ConfigError."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {(error.strerror or 'unknown error').lower()}", hint="check the path and its mode"
        ) from error
    if len(content) > _MAX_FILE_BYTES:
        raise ConfigError(f"{path} is longer than {_MAX_FILE_BYTES} bytes", hint="name the file of a policy")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: the file is not UTF-8", hint="save it as UTF-8") from None


def read(text: str, *, file: str) -> Policy:
    """Read the text of a policy; `file` is its name in errors and verdicts. Raises: ConfigError."""
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        what = str(error)
        found = re.search(r"\(at line (\d+),[^)]*\)", what)
        line = int(found[1]) if found else text.count("\n") + 1
        raise ConfigError(
            f"{file}:{line}: this is not TOML: {what.partition(' (at ')[0][:200].lower()}", hint="correct that line"
        ) from error
    return _Reader(table, lines=_Lines(text), file=file).policy()


def with_rule(text: str, line: str) -> str:
    """Give the text of a policy with one more rule before all others, so that it counts. `line` is `allow = "…"`."""
    lines = text.splitlines(keepends=True)
    first = next((i for i, found in enumerate(lines) if _Lines.HEADER.match(found)), len(lines))
    before = "".join(lines[:first])
    if before and not before.endswith("\n"):
        before += "\n"
    rule = f"[[rule]]\n{line}\n"
    return f"{before}{rule}\n{''.join(lines[first:])}" if first < len(lines) else f"{before}\n{rule}"


class _Reader:
    """Turns one parsed file into a Policy."""

    def __init__(self, table: Mapping[str, object], *, lines: _Lines, file: str) -> None:
        self._table = table
        self._lines = lines
        self._file = file

    def policy(self) -> Policy:
        self._check_keys(self._table, _TOP, None)
        default = self._allow_or_deny("default")
        if default is None:
            raise ConfigError(
                f"{self._file}:1: default is missing", hint='write `default = "deny"` or `default = "allow"` at the top'
            )
        return Policy(
            default=default,
            other_hosts=self._allow_or_deny("other_hosts") or default,
            rules=tuple(self._rule(i, rule) for i, rule in enumerate(self._tables("rule"))),
            openings=tuple(self._opening(i, item) for i, item in enumerate(self._list("allow_off_limits"))),
            file=self._file,
        )

    def _allow_or_deny(self, key: str) -> Literal["allow", "deny"] | None:
        match self._table.get(key):
            case "allow":
                return "allow"
            case "deny":
                return "deny"
            case None:
                return None
        raise self._wrong(self._lines.of(key), key, "is neither", hint=f'write {key} = "allow" or {key} = "deny"')

    def _rule(self, index: int, table: object) -> Rule:
        line = self._lines.of_rule(index)
        if not isinstance(table, dict):
            raise self._wrong(line, "rule", "is no table", hint="write [[rule]] on a line of its own")
        self._check_keys(table, _RULE, index)
        said = [verdict for verdict in _VERDICTS if verdict in table]
        if len(said) != 1:
            raise self._wrong(
                line,
                "rule",
                f"needs just one of {', '.join(_VERDICTS)}" + (f" and has {' and '.join(said)}" if said else ""),
                hint='write allow = "GET api.example.com/v1/**"',
            )
        line = self._lines.of_rule(index, said[0])
        return Rule(
            verdict=said[0],
            pattern=self._pattern(line, said[0], table[said[0]], host_needed=True),
            place=f"{self._file}:{line}",
            name=self._text(table, "name", index),
            reason=self._text(table, "reason", index),
        )

    def _opening(self, index: int, item: object) -> Opening:
        key = "allow_off_limits"
        line = self._lines.of_item(key, item)
        provider, colon, rest = item.partition(": ") if isinstance(item, str) else ("", "", "")
        if not colon or not re.fullmatch(r"[a-z0-9-]+", provider):
            raise self._wrong(
                line, f"{key}[{index}]", "names no provider", hint='write it as "PROVIDER: POST /v1/organizations/**"'
            )
        found = self._pattern(line, f"{key}[{index}]", rest.lstrip(" "), host_needed=False)
        return Opening(provider=provider, pattern=found, place=f"{self._file}:{line}")

    def _pattern(self, line: int, key: str, value: object, *, host_needed: bool) -> Pattern:
        if not isinstance(value, str):
            raise self._wrong(line, key, "is no text", hint='write it as "GET api.example.com/v1/**", in quotes')
        try:
            return pattern.read(value, host_needed=host_needed)
        except WrongPattern as wrong:
            raise self._wrong(line, key, f'"{value[:80]}" {wrong.message}', hint=wrong.hint) from None

    def _text(self, table: Mapping[str, object], key: str, index: int) -> str:
        value = table.get(key, "")
        if not isinstance(value, str) or not value.isprintable():
            raise self._wrong(
                self._lines.of_rule(index, key), key, "is no text on one line", hint="write it in quotes, on one line"
            )
        return value

    def _tables(self, key: str) -> Sequence[object]:
        value = self._table.get(key, [])
        if not isinstance(value, list):
            raise self._wrong(self._lines.of(key), key, "is not repeated", hint=f"write [[{key}]] in double brackets")
        return value

    def _list(self, key: str) -> Sequence[object]:
        value = self._table.get(key, [])
        if not isinstance(value, list):
            raise self._wrong(self._lines.of(key), key, "is no list", hint="write it in brackets")
        return value

    def _check_keys(self, table: Mapping[str, object], known: Sequence[str], index: int | None) -> None:
        for name in table:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                line = self._lines.of(name) if index is None else self._lines.of_rule(index, name)
                hint = f"did you mean {near[0]}?" if near else f"take it out; known here: {', '.join(known)}"
                raise ConfigError(f"{self._file}:{line}: unknown key {name[:60]}", hint=hint)

    def _wrong(self, line: int, key: str, what: str, *, hint: str) -> ConfigError:
        return ConfigError(f"{self._file}:{line}: {key} {what}", hint=hint)


class _Lines:
    """Where things are written; tomllib keeps no places. What is not found is told as the nearest table's line."""

    HEADER = re.compile(r"\s*\[\[\s*rule\s*\]\]")
    _KEY = re.compile(r"""\s*["']?([A-Za-z0-9_-]+)["']?\s*=""")

    def __init__(self, text: str) -> None:
        self._text = text.split("\n")
        self._top: dict[str, int] = {}
        self._rules: list[tuple[int, dict[str, int]]] = []
        for number, line in enumerate(self._text, start=1):
            if self.HEADER.match(line):
                self._rules.append((number, {}))
            elif found := self._KEY.match(line):
                keys = self._rules[-1][1] if self._rules else self._top
                keys.setdefault(found[1], number)

    def of(self, key: str) -> int:
        return self._top.get(key, 1)

    def of_rule(self, index: int, key: str | None = None) -> int:
        if index >= len(self._rules):
            return self.of("rule")
        line, keys = self._rules[index]
        return line if key is None else keys.get(key, line)

    def of_item(self, key: str, item: object) -> int:
        first = self.of(key)
        written = str(item)
        lines = enumerate(self._text[first - 1 :], start=first)
        return next((number for number, line in lines if f'"{written}"' in line or f"'{written}'" in line), first)

"""`METHOD host/path`: what a rule of a policy and an off-limits path of a provider match.

`*` is one segment of a path or a part of one, `**` any number of them; `/**` at the end takes the path before it too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from valetkey.gateway.normal import DEFAULT_PORTS, Malformed, Target, loosened, normalise

__all__ = ["Host", "Pattern", "WrongPattern", "read", "read_host"]

_METHODS = re.compile(r"\*|[A-Z]+(?:,[A-Z]+)*")
_WILD = re.compile(r"(/\*\*/|\*\*|/\*(?=/|\Z)|\*)")
_BRACES = re.compile(r"\{[A-Za-z0-9_-]+\}")
_EVERYTHING = "/**"


class WrongPattern(Exception):  # never leaves gateway/: whoever reads a file turns it into its error
    """`message` goes on after the pattern ("has no path"); `hint` says what to write instead."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True, kw_only=True)
class Host:
    """Hosts that are meant. `port` None is the scheme's own where something is allowed, every one where it is not."""

    text: str
    regex: re.Pattern[str]
    port: int | Literal["*"] | None = None

    def matches(self, target: Target, *, loosely: bool) -> bool:
        """Say whether `target` is one of them."""
        if self.regex.fullmatch(target.host) is None:
            return False
        if self.port is None:
            return loosely or target.port == DEFAULT_PORTS[target.scheme]
        return self.port in ("*", target.port)

    @property
    def is_exact(self) -> bool:
        """Whether it names one host."""
        return "*" not in self.text and "{" not in self.text


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """A pattern, compiled. `methods` and `host` None are any."""

    text: str
    methods: frozenset[str] | None
    host: Host | None
    path: str
    strict: re.Pattern[str]
    loose: re.Pattern[str]

    def matches(self, method: str, target: Target, *, loosely: bool) -> bool:
        """Say whether the request is meant.

        `loosely` for what refuses: the path as the most lenient server would read it (`loosened`), every port.
        """
        if self.methods is not None and method not in self.methods:
            return False
        if self.host is not None and not self.host.matches(target, loosely=loosely):
            return False
        if loosely:
            return self.loose.fullmatch(loosened(target.path)) is not None
        return self.strict.fullmatch(target.path) is not None

    def allows_tunnel(self, target: Target) -> bool:
        """Say whether everything that a tunnel there could carry is meant, or the tunnel itself (`CONNECT host/**`)."""
        if self.methods is not None and "CONNECT" not in self.methods:
            return False
        return self.path == _EVERYTHING and (self.host is None or self.host.matches(target, loosely=False))

    def touches_tunnel(self, target: Target) -> bool:
        """Say whether something that a tunnel there could carry is meant."""
        return self.host is None or self.host.matches(target, loosely=True)


def read(text: str, *, host_needed: bool) -> Pattern:
    """Read `METHOD host/path`; without `host_needed` also `METHOD /path`, which is any host. Raises: WrongPattern."""
    words = text.split(" ")
    if len(words) != 2 or not all(words) or not text.isascii() or not text.isprintable():
        raise WrongPattern(
            "is not a method, one space, and host/path", hint='write it as "GET api.example.com/v1/models"'
        )
    methods, place = words
    if not _METHODS.fullmatch(methods):
        raise WrongPattern(
            f"has {methods[:40]!r} for a method", hint="write methods in capitals, joined by commas, or * for any"
        )
    host, slash, rest = place.partition("/")
    if not slash:
        raise WrongPattern("has no path", hint=f'write "{methods} {host}/**" for all of that host')
    if host_needed and not host:
        raise WrongPattern("has no host", hint=f'write "{methods} HOST{place}", or */ before the path for any host')
    named = read_host(host, stars_anywhere=not host_needed) if host else None
    path = _checked_path("/" + rest)
    chosen = None if methods == "*" else frozenset(methods.split(","))
    if chosen is not None and "CONNECT" in chosen and path != _EVERYTHING:
        raise WrongPattern(
            "has a path for CONNECT, which has none", hint=f'write "{methods} {host}/**": a tunnel carries anything'
        )
    return Pattern(
        text=text,
        methods=chosen,
        host=named,
        path=path,
        strict=re.compile(_regex(path)),
        loose=re.compile(_regex(loosened(path) if not path.endswith(_EVERYTHING) else loosened(path[:-3]) + "/**")),
    )


def read_host(text: str, *, stars_anywhere: bool = False) -> Host:
    """Read `host`, `host:port`, `host:*`, `*.example.com` or `*`. Raises: WrongPattern.

    A name in braces (a provider's parameter) stands for anything: what is off limits must not open with it.
    """
    name, port = text, ""
    if found := re.fullmatch(r"(.*):(\d{1,5}|\*)", text):
        name, port = found[1], found[2]
    name = name.lower().removesuffix(".")
    example = _BRACES.sub("x", name).replace("*", "x")
    target = normalise(scheme="https", host=example, port=None, path="/")
    starred = "*" in name and not re.fullmatch(r"\*|\*\.[^*]+", name)
    if isinstance(target, Malformed) or (starred and not stars_anywhere) or port == "0":
        raise WrongPattern(
            f"has {text[:60]!r} for a host", hint="write api.example.com, *.example.com, 127.0.0.1:8000 or * alone"
        )
    if name.startswith("["):
        name = target.host
    pieces = re.split(r"(\*|\{[^}]*\})", name)
    regex = "".join(".+" if piece[:1] in ("*", "{") else re.escape(piece) for piece in pieces)
    number: int | Literal["*"] | None = None if not port else "*" if port == "*" else int(port)
    return Host(text=text, regex=re.compile(regex), port=number)


def _checked_path(path: str) -> str:
    if "?" in path or "#" in path:
        raise WrongPattern("has a query", hint="take it out: a rule is about the path, whatever the query")
    # With more, an expression takes the square of the path's length, and who sends the path can make it long.
    if path.removesuffix(_EVERYTHING).count("**") > 1:
        raise WrongPattern(
            "has more than one ** before its end", hint="write two rules, or one ** for what lies between"
        )
    for segment in path.split("/"):
        if segment.replace("**", "*").count("*") > 1:
            raise WrongPattern(f"has more than one star in {segment[:40]!r}", hint="write one * in a segment")
    target = normalise(scheme="https", host="x", port=None, path=path)
    if isinstance(target, Malformed):
        raise WrongPattern(target.reason, hint="write the path as it is in the request")
    if target.path != path:
        raise WrongPattern("is not in normal form and would never match", hint=f"write the path as {target.path}")
    return path


def _regex(path: str) -> str:
    whole = path.endswith(_EVERYTHING)
    body = path[: -len(_EVERYTHING)] if whole else path
    meanings = {"/**/": "/(?:.*/)?", "**": ".*", "/*": "/[^/]+", "*": "[^/]*"}
    pieces = (meanings.get(piece, re.escape(piece)) for piece in _WILD.split(body))
    return "(?s:" + "".join(pieces) + ("(?:/.*)?" if whole else "") + ")"

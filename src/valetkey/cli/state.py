"""The state of one call of the command line: its flags, its terminal, and what commands work with."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

from valetkey.cli.output import plain, plain_json, table
from valetkey.config import Config, Paths, load
from valetkey.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from valetkey.audit.recorder import Audit
    from valetkey.broker import Broker
    from valetkey.clock import Clock
    from valetkey.credential import Secret
    from valetkey.http import HttpClient
    from valetkey.login import Logins
    from valetkey.providers import Catalogue
    from valetkey.stores.sqlite import SqliteStore

__all__ = ["State", "is_terminal"]

T = TypeVar("T")
_USUAL_PORT = 4380


@dataclass(kw_only=True)
class State:
    """One call of the command line: its flags, its terminal, and what commands work with, opened when needed."""

    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    json: bool = False
    verbose: bool = False
    no_color: bool = False
    # Off where a command asks nothing, whoever is there.
    asks: bool = True
    words: Sequence[str] = ()
    _stop_log: Callable[[], None] = field(default=lambda: None, repr=False)

    # --- the terminal ------------------------------------------------------------------------

    @property
    def interactive(self) -> bool:
        """Whether somebody can be asked: keys and screen are a terminal's, and nobody reads JSON."""
        return self.asks and is_terminal(sys.stdin) and is_terminal(sys.stderr) and not self.json

    @property
    def on_terminal(self) -> bool:
        """Whether a person reads stdout."""
        return is_terminal(sys.stdout) and not self.json

    @property
    def color(self) -> bool:
        """Whether stdout may be coloured (NO_COLOR: https://no-color.org)."""
        if self.no_color or self.json:
            return False
        # Settings that cannot be read are told by what needs them; `doctor` must be able to say so.
        with suppress(ConfigError):
            match self.config.text("display.color"):
                case "always":
                    return True
                case "never":
                    return False
        return self.on_terminal and not self.environ.get("NO_COLOR") and not self.dumb

    @property
    def dumb(self) -> bool:
        """Whether the terminal only prints line after line (terminfo's `dumb`): nothing can be drawn or overwritten."""
        return self.environ.get("TERM") == "dumb"

    @property
    def width(self) -> int | None:
        """The columns of the terminal; None where stdout is none and lines may be as long as they are."""
        return shutil.get_terminal_size((80, 24)).columns if self.on_terminal else None

    # --- speaking ----------------------------------------------------------------------------

    def emit(self, value: object) -> None:
        """Give the command's result under `--json`; without it nothing. Datetimes become ISO 8601 in UTC."""
        if self.json:
            click.echo(plain_json(json.dumps(value, ensure_ascii=False, indent=2, default=_as_json)))

    def say(self, text: str = "", *, fg: str | None = None, bold: bool = False) -> None:
        """Print a line of the result for a person; under `--json` nothing."""
        if not self.json:
            click.echo(self.style(plain(text), fg=fg, bold=bold), color=self.color)

    def style(self, text: str, *, fg: str | None = None, bold: bool = False) -> str:
        """Colour `text` where stdout may be coloured."""
        return click.style(text, fg=fg, bold=bold) if self.color and (fg or bold) else text

    def note(self, text: str) -> None:
        """Tell something beside the result, on stderr, on a terminal or not."""
        click.echo(f"valetkey: {plain(text)}", err=True)

    def progress(self, text: str) -> None:
        """Show how long work goes: one line of stderr that the next call overwrites; nothing where that cannot be."""
        if is_terminal(sys.stderr) and not self.json and not self.dumb:
            columns = shutil.get_terminal_size((80, 24)).columns
            click.echo("\r\x1b[K" + plain(text)[: columns - 1], err=True, nl=False, color=True)

    def table(
        self, headings: Sequence[str], rows: Sequence[Sequence[str]], *, colors: Mapping[str, str] | None = None
    ) -> None:
        """Print a table that fits the terminal. `colors` gives the colour of the rows that hold such a cell."""
        if self.json:
            return
        lines = table(headings, rows, width=self.width)
        click.echo(self.style(lines[0], bold=True), color=self.color)
        for line, row in zip(lines[1:], rows, strict=True):
            color = next((colors[cell] for cell in row if cell in colors), None) if colors else None
            click.echo(self.style(line, fg=color), color=self.color)

    # --- asking ------------------------------------------------------------------------------

    def confirm(self, question: str, *, yes: bool, option: str = "--yes") -> bool:
        """Ask a yes-or-no question whose default is no; `yes` answers it. Raises: UsageError without a terminal."""
        if yes:
            return True
        if not self.interactive:
            raise UsageError(f"this needs a yes: {question}", hint=f"add {option} if that is what you want")
        return click.confirm(plain(question), default=False, err=True)

    def ask(self, label: str, *, secret: bool = False, default: str | None = None, instead: str) -> str:
        """Ask for one line; what is typed for a secret is not shown.

        `instead` is the hint where there is no terminal: how to give the value another way. Raises: UsageError there.
        """
        if not self.interactive:
            raise UsageError(f"{label} is needed, and there is no terminal to ask on", hint=instead)
        answer: str = click.prompt(
            plain(label), default=default, hide_input=secret, show_default=bool(default) and not secret, err=True
        )
        return answer

    # --- working -----------------------------------------------------------------------------

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run asynchronous work to its end. Ctrl-C cancels it and comes out as KeyboardInterrupt."""
        import asyncio

        return asyncio.run(work)

    @cached_property
    def config(self) -> Config:
        """The settings. Raises: ConfigError."""
        return load(self.environ)

    @cached_property
    def paths(self) -> Paths:
        """Where things are."""
        return Paths.of(self.environ)

    @cached_property
    def clock(self) -> Clock:
        """The machine's clock."""
        from valetkey.clock import SystemClock

        return SystemClock()

    @cached_property
    def http(self) -> HttpClient:
        """The client for control traffic."""
        from valetkey.http import HttpClient

        return HttpClient(
            timeout_seconds=self.config.seconds("network.timeout_seconds"), ca_file=self.config.text("network.ca_file")
        )

    @cached_property
    def catalogue(self) -> Catalogue:
        """The providers there are."""
        from valetkey.providers import catalogue

        return catalogue(self.paths)

    @cached_property
    def store(self) -> SqliteStore:
        """The records. A passphrase is asked for on a terminal, where no file holds it. Raises: StoreError."""
        from valetkey.stores import open_store

        asks = self.interactive and not self.environ.get("VALETKEY_PASSPHRASE_FILE")
        return open_store(
            self.paths,
            clock=self.clock,
            ask_passphrase=self._passphrase if asks else None,
            key_source_kind=self.config.text("store.key_source") or "auto",
            key_command=self.config.words("store.key_command"),
            environ=self.environ,
        )

    def _passphrase(self) -> Secret:
        from valetkey.credential import Secret

        answer: str = click.prompt(
            "Passphrase of the store",
            hide_input=True,
            err=True,
            # Mistyped at the first time, it would lock everybody out.
            confirmation_prompt=self.store.source_kind() is None,
        )
        return Secret(answer)

    @cached_property
    def audit(self) -> Audit:
        """What was done with the accounts is written there."""
        from valetkey.audit.recorder import Audit

        return Audit(self.paths, self.clock)

    @cached_property
    def broker(self) -> Broker:
        """What gives fresh credentials."""
        from valetkey.broker import Broker

        return Broker(
            store=self.store,
            catalogue=self.catalogue,
            http=self.http,
            clock=self.clock,
            environ=self.environ,
            accounts_here=self.config.accounts_here(Path.cwd()),
            audit=self.audit,
        )

    def hint_at_gateway(self) -> None:
        """Say, where no gateway runs, how to start one."""
        from valetkey import serving

        if serving.running(str(self.paths.home)) is None:
            self.note("no gateway runs yet: start it with `valetkey up`")

    @property
    def gateway_url(self) -> str:
        """The address of the gateway that runs, else the one where it would listen: with port 0, nobody knows yet."""
        from valetkey import serving
        from valetkey.errors import GatewayDown

        with suppress(GatewayDown):
            return serving.base_url(str(self.paths.home))
        host = self.config.text("gateway.host") or "127.0.0.1"
        return f"http://{f'[{host}]' if ':' in host else host}:{self.config.port('gateway.port') or _USUAL_PORT}"

    @cached_property
    def logins(self) -> Logins:
        """Logins under way."""
        from valetkey.sdk import logins

        return logins(self.broker)

    def start_log(self, *, file: str | None = None) -> None:
        """Log as the settings say, else to `file`, without secrets. Broken settings are told by whoever needs them."""
        from valetkey.log import set_up

        level = "warning"
        with suppress(ConfigError):
            level, file = self.config.text("log.level") or level, self.config.text("log.file") or file
        self._stop_log()
        self._stop_log = set_up(level="debug" if self.verbose else level, file=file)

    def close(self) -> None:
        """Let go of what was opened."""
        opened = self.__dict__
        if "store" in opened and "audit" in opened and self.audit.wants_signature and self.store.keys.is_open:
            from valetkey.audit.signing import sign_quietly

            sign_quietly(self.audit, self.store, self.paths, self.clock)
        for name in ("broker", "audit", "http", "store"):
            if name in opened:
                opened.pop(name).close()
        self._stop_log()


def is_terminal(stream: TextIO | None) -> bool:
    """Say whether a person is at its other end."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def _as_json(value: object) -> object:
    from datetime import datetime

    if isinstance(value, datetime):
        from valetkey.clock import written

        return written(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")

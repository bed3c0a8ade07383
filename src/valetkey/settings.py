"""The settings there are: one table, which the reader of config.toml, `config show` and docs/config.md share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from valetkey.errors import ConfigError

__all__ = [
    "SETTINGS",
    "Key",
    "Setting",
    "Value",
    "absolute",
    "checked",
    "from_variable",
    "is_table",
    "setting_of",
    "shown",
    "unknown",
]

Value = str | int | float | tuple[str, ...] | None
# The parts of a dotted key. A part may itself hold dots: folders are named by their paths.
Key = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One documented key. `*` in it stands for a name of the user's choice; such a key is read from the file only."""

    key: str
    kind: Literal["text", "path", "choice", "seconds", "count", "port", "words"]
    default: Value
    description: str
    options: tuple[str, ...] = ()
    # Seconds that may be none: 0 switches it off.
    may_be_zero: bool = False

    @property
    def variable(self) -> str | None:
        """Give the environment variable that wins over the file."""
        return None if "*" in self.key else "VALETKEY_" + self.key.upper().replace(".", "_")


SETTINGS = (
    Setting(
        key="default_model",
        kind="text",
        default=None,
        description="Model of `ask` and chat when none is named: `provider[@account]/model`. Wins over `models use`.",
    ),
    Setting(
        key="login.timeout_seconds",
        kind="seconds",
        default=600,
        description="How long a login waits for you; `--timeout` wins.",
    ),
    Setting(
        key="login.browser",
        kind="choice",
        default="auto",
        options=("auto", "never"),
        description="Whether a login may open a browser; `never` is `--no-browser` for good.",
    ),
    Setting(
        key="network.timeout_seconds",
        kind="seconds",
        default=20,
        description="How long one request for a login, a renewal or a check may take.",
    ),
    Setting(
        key="network.ca_file",
        kind="path",
        default=None,
        description="Certificates (PEM) to trust beside the system's own.",
    ),
    Setting(
        key="store.key_source",
        kind="choice",
        default="auto",
        options=("auto", "keychain", "passphrase", "key-file", "command"),
        description="What opens a new store; `auto` is the keychain, else a key file. An old store keeps what it has.",
    ),
    Setting(
        key="store.key_command",
        kind="words",
        default=(),
        description="Program and arguments that print the key, for the key source `command`.",
    ),
    Setting(
        key="gateway.host",
        kind="text",
        default="127.0.0.1",
        description="Address that the gateway listens on. What is not loopback is open to the network, in plain HTTP.",
    ),
    Setting(
        key="gateway.port",
        kind="port",
        default=4380,
        description="Port that the gateway listens on; 0 takes any free one.",
    ),
    Setting(
        key="gateway.idle_exit_seconds",
        kind="seconds",
        default=14400,
        description="A gateway that `up` started ends after so long without a request, where no valet key lives.",
    ),
    Setting(
        key="log.level",
        kind="choice",
        default="warning",
        options=("error", "warning", "info", "debug"),
        description="What is logged; `--verbose` is `debug`. Secrets are taken out at every level.",
    ),
    Setting(
        key="log.file",
        kind="path",
        default=None,
        description="A file to log to, made with mode 0600, in place of standard error.",
    ),
    Setting(
        key="gateway.response_seconds",
        kind="seconds",
        default=600,
        description="How long the gateway waits for the head of a provider's answer.",
    ),
    Setting(
        key="gateway.stream_seconds",
        kind="seconds",
        default=600,
        description="How long the gateway waits for the next byte of a body, either way.",
    ),
    Setting(
        key="gateway.total_seconds",
        kind="seconds",
        default=86400,
        description="How long a request and its answer may take in all.",
    ),
    Setting(
        key="gateway.max_body_bytes",
        kind="count",
        default=None,
        description="How long the body of a request may be; without it there is no limit.",
    ),
    Setting(
        key="trace.keep_days",
        kind="count",
        default=14,
        description="For how many days the gateway's trace keeps a request.",
    ),
    Setting(
        key="trace.max_rows",
        kind="count",
        default=1_000_000,
        description="How many requests the trace keeps at most; a million take some 130 MB.",
    ),
    Setting(
        key="runs.sandbox",
        kind="choice",
        default="bubblewrap",
        options=("bubblewrap", "docker", "podman"),
        description="What a run is made in; `run --sandbox` wins.",
    ),
    Setting(
        key="runs.image",
        kind="text",
        default=None,
        description="The image that containers of docker or podman are made of; `run --image` wins.",
    ),
    Setting(
        key="runs.keep_days",
        kind="count",
        default=30,
        description="For how many days a run that has ended is kept, with what it said and its home.",
    ),
    Setting(
        key="runs.max_mb",
        kind="count",
        default=2000,
        description="How many MB all runs may take together; above that the oldest that have ended go.",
    ),
    Setting(
        key="runs.hold_for_login_seconds",
        kind="seconds",
        default=180,
        may_be_zero=True,
        description="How long a request of a run waits for a login that it lacks; 0 answers `needs_login` at once.",
    ),
    Setting(
        key="trace.bodies",
        kind="choice",
        default="off",
        options=("off", "on"),
        description="Whether the trace keeps the first 8 KiB of each body. Secrets are taken out, all else is there.",
    ),
    Setting(
        key="trace.otlp_endpoint",
        kind="text",
        default=None,
        description="The OpenTelemetry collector (OTLP over HTTP) that gets a span for each request.",
    ),
    Setting(
        key="display.color",
        kind="choice",
        default="auto",
        options=("auto", "always", "never"),
        description="Colour in what a command prints; `auto` is on a terminal, unless NO_COLOR is set.",
    ),
    Setting(
        key="runs.mcp",
        kind="words",
        default=(),
        description="The MCP servers that a run gets where `--mcp` names none.",
    ),
    Setting(
        key="mcp.servers.*.url",
        kind="text",
        default=None,
        description="Where an MCP server is: `https://…`. The gateway relays it to runs ([mcp.md](mcp.md)).",
    ),
    Setting(
        key="mcp.servers.*.grant",
        kind="text",
        default=None,
        description="The account, `provider[@account]`, whose credential is put in on the way to that server.",
    ),
    Setting(
        key="mcp.servers.*.transport",
        kind="choice",
        default="http",
        options=("http", "sse"),
        description="How that server is spoken to: streamable HTTP, or the older HTTP with server-sent events.",
    ),
    Setting(
        key="mcp.servers.*.tools",
        kind="words",
        default=None,
        description="Which of its tools a run may use, `*` standing for anything; without it all.",
    ),
    Setting(
        key="mcp.servers.*.command",
        kind="words",
        default=None,
        description="In place of a url: the program, with arguments, of a server that the agent starts in its run.",
    ),
    Setting(
        key="agents.*.program",
        kind="path",
        default=None,
        description="Where the program of an agent is, in place of the one on PATH.",
    ),
    Setting(
        key="providers.*.client_id",
        kind="text",
        default=None,
        description="An OAuth client id of your own for this provider's logins, in place of the declared one.",
    ),
    Setting(
        key="folders.*.*",
        kind="text",
        default=None,
        description="The account of a provider that tools in this folder and below it use when none is named.",
    ),
)


def setting_of(key: Key) -> Setting | None:
    """Give the setting that this key names."""
    return next((s for s in SETTINGS if s.key.count(".") + 1 == len(key) and _leads_to(key, s)), None)


def is_table(key: Key) -> bool:
    """Say whether this is the name of a table, with settings below it."""
    return any(s.key.count(".") + 1 > len(key) and _leads_to(key, s) for s in SETTINGS)


def _leads_to(key: Key, setting: Setting) -> bool:
    return all(part in ("*", name) for part, name in zip(setting.key.split("."), key, strict=False))


def shown(key: Key) -> str:
    """Write a key as it stands in the file."""
    return ".".join(part if part.replace("-", "").replace("_", "").isalnum() else f'"{part}"' for part in key)


def unknown(key: Key, place: str) -> ConfigError:
    """Make the error for a key that nothing documents."""
    import difflib

    written = shown(key)
    near = difflib.get_close_matches(written, [setting.key for setting in SETTINGS], n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "see `valetkey config show` for what there is"
    return ConfigError(f"{place}: unknown key {written[:60]}", hint=hint)


def absolute(path: str, folder: Path, environ: Mapping[str, str]) -> str:
    """Give the path from the root; `~/` is the home folder of `environ`, not of the process."""
    home = environ.get("HOME")
    return os.path.normpath(os.path.join(home, path[2:]) if home and path.startswith("~/") else folder / path)


def checked(setting: Setting, value: object, place: str, folder: Path, environ: Mapping[str, str]) -> Value:
    """Check a value against its setting; `folder` is what a path is relative to.

    Raises: ConfigError, which does not repeat the value: it may be a pasted secret.
    """
    match setting.kind:
        case "text" if isinstance(value, str) and value.isprintable():
            return value
        case "path" if isinstance(value, str) and value and value.isprintable():
            return absolute(value, folder, environ)
        case "choice" if isinstance(value, str) and value in setting.options:
            return value
        case "seconds" if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 86400:
            if value > 0 or setting.may_be_zero:
                return value
        case "count" if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 10**9:
            return value
        case "port" if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 65535:
            return value
        case "words" if isinstance(value, list) and all(isinstance(word, str) for word in value):
            return tuple(value)
    raise ConfigError(f"{place} has a value that cannot be used", hint=f"give it {_wanted(setting)}")


def _wanted(setting: Setting) -> str:
    match setting.kind:
        case "choice":
            return f"one of: {', '.join(setting.options)}"
        case "seconds":
            return f"a number of seconds, {'from 0 on' if setting.may_be_zero else 'more than 0'} and at most 86400"
        case "count":
            return "a whole number, at least 1 and at most a thousand million"
        case "port":
            return "a whole number from 0 to 65535"
        case "words":
            return 'a list of texts, such as ["program", "argument"]'
        case "path":
            return "a path"
        case "text":
            return "a text in quotes, on one line"


def from_variable(setting: Setting, variable: str, given: str, environ: Mapping[str, str]) -> Value:
    """Read the value of an environment variable: words as a shell splits them. Raises: ConfigError."""
    value: object = given
    if setting.kind == "seconds":
        try:
            value = float(given) if "." in given else int(given)
        except ValueError:
            value = None
    elif setting.kind == "count":
        value = int(given) if given.isascii() and given.isdigit() and len(given) <= 10 else None
    elif setting.kind == "port":
        value = int(given) if given.isascii() and given.isdigit() else None
    elif setting.kind == "words":
        import shlex

        try:
            value = shlex.split(given)
        except ValueError:
            value = None
    return checked(setting, value, f"the environment variable {variable}", Path.cwd(), environ)

"""`env`, which prints an account's variables for a shell, and `exec`, which runs one command with them."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

import click

from valetkey.cli.frame import State, command
from valetkey.errors import UsageError, ValetkeyError

if TYPE_CHECKING:
    from valetkey.access import Access
    from valetkey.variables import Variables

__all__ = ["env", "exec_command"]

# What a shell gives for a command that is not there, or may not be run (POSIX, Shell Command Language, 2.8.2).
_NOT_FOUND = 127
_NOT_RUNNABLE = 126


# --- env -------------------------------------------------------------------------------------


@command("env", short_help="Print the variables of accounts for a shell.")
@click.argument("names", metavar="PROVIDER[@ACCOUNT]…", nargs=-1, required=True)
@click.option(
    "--shell", type=click.Choice(["sh", "bash", "zsh", "fish"]), help="Whose syntax (default: that of $SHELL)."
)
def env(state: State, *, names: tuple[str, ...], shell: str | None) -> None:
    """Print lines that set the variables of these accounts: eval "$(valetkey env openai)".

    They hold the secrets in plain text. `valetkey exec` gives them to one command alone.
    """
    from valetkey.variables import changes

    chosen = _chosen(state, names)
    wanted = changes(chosen)
    if state.json:
        state.emit(
            {
                "accounts": [
                    {"provider": v.ref.provider, "account": v.ref.account, "source": v.source} for v in chosen
                ],
                "set": {name: value for name, value in wanted.items() if value is not None},
                "unset": sorted(name for name, value in wanted.items() if value is None),
            }
        )
        return
    write = _fish if (shell or os.path.basename(state.environ.get("SHELL", ""))) == "fish" else _posix
    for name, value in sorted(wanted.items()):
        if value is not None or name in state.environ:
            click.echo(write(name, value))


def _posix(name: str, value: str | None) -> str:
    return f"unset {name}" if value is None else f"export {name}={shlex.quote(value)}"


def _fish(name: str, value: str | None) -> str:
    if value is None:
        return f"set -e {name}"
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"set -gx {name} '{escaped}'"


def _chosen(state: State, names: Sequence[str]) -> list[Variables]:
    from valetkey.cli.login import or_log_in
    from valetkey.variables import variables_for

    async def access(name: str) -> Access:
        return await state.broker.access(name, use="exec")

    return [variables_for(or_log_in(state, name, access)) for name in names]


# --- exec ------------------------------------------------------------------------------------


@command(
    "exec",
    short_help="Run a command with the variables of accounts.",
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False},
)
@click.option("-p", "--provider", "names", metavar="PROVIDER[@ACCOUNT]", multiple=True, help="An account; repeatable.")
@click.argument("argv", metavar="-- CMD [ARG]…", nargs=-1, type=click.UNPROCESSED, required=True)
def exec_command(state: State, *, names: tuple[str, ...], argv: tuple[str, ...]) -> None:
    """Run one command with the variables of these accounts, and no other variable of the same providers.

    The command takes this one's place: signals and exit status are its own. 127: not there, 126: cannot be run.
    """
    from valetkey.variables import changed, changes

    if not names:
        raise UsageError("no account is named", hint="write `valetkey exec -p PROVIDER -- CMD`")
    environ = changed(state.environ, changes(_chosen(state, names)))
    # This process is about to become the command: what still saves a token must be done first.
    state.broker.close()
    _become(argv, environ)


def _become(argv: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Replace this process by the command: its signals, terminal and exit status are then its own."""
    # Python ignores SIGPIPE, and what is ignored stays so in the command.
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execvpe(argv[0], list(argv), dict(environ))  # noqa: S606  # the user's own command, no shell
    except FileNotFoundError:
        raise _CommandFailed(f"there is no command {argv[0]!r}", _NOT_FOUND) from None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "its name cannot be used"
        raise _CommandFailed(f"{argv[0]!r} cannot be run: {reason.lower()}", _NOT_RUNNABLE) from error
    finally:
        signal.signal(signal.SIGPIPE, before)


class _CommandFailed(ValetkeyError):
    """The command of `exec` could not be started."""

    code = "command_failed"

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, hint="check its name and PATH; what follows `--` is run as it stands, with no shell")
        self.exit_status = status

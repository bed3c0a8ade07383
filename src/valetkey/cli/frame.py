"""What every command stands on: how it is declared, found, started, and how it ends.

A command is written as

    @command("list")
    @click.option("--all", is_flag=True)
    def list_accounts(state: State, *, all: bool) -> None: ...

`@command` adds `--json`, `--verbose` and `--no-color`. With `--json`, stdout gets one JSON document: what the
command gives, or `{"error": {"code", "message", "hint", "provider", "retryable"}}`. The two lines for a person,
`valetkey: error: …` and `valetkey: hint: …`, go to stderr in both cases.

Exit status: 0 done, 1 failed, 2 wrong usage, 3 needs login, 4 refused by policy, 130 stopped with Ctrl-C,
141 when the reader of a pipe went away. `doctor` and `exec` add their own.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import click

from valetkey.cli import COMMANDS, GROUPS, OTHER_NAMES
from valetkey.cli.output import plain
from valetkey.cli.state import State, is_terminal
from valetkey.errors import UsageError, ValetkeyError

__all__ = ["Commands", "State", "command", "group", "run", "stop"]

# What a program that a closed pipe killed ends with: 128 + SIGPIPE.
_PIPE_CLOSED = 141
# No provider has shorter keys, and few accounts longer names.
_SHORTEST_KEY = 20

# --- commands --------------------------------------------------------------------------------


def _flag(name: str) -> Callable[[click.Context, click.Parameter, bool], None]:
    def keep(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if value:
            setattr(context.ensure_object(State), name, True)

    return keep


_FLAGS = (
    click.option("--json", is_flag=True, expose_value=False, callback=_flag("json"), help="Give JSON, ask nothing."),
    click.option("--verbose", is_flag=True, expose_value=False, callback=_flag("verbose"), help="Tell more on stderr."),
    click.option("--no-color", is_flag=True, expose_value=False, callback=_flag("no_color"), help="No colour."),
)


def _with_flags(function: Callable[..., None]) -> Callable[..., Any]:
    @functools.wraps(function)
    def logged(state: State, *args: Any, **options: Any) -> None:
        state.start_log()
        function(state, *args, **options)

    wrapped: Callable[..., Any] = click.pass_obj(logged)
    for flag in reversed(_FLAGS):
        wrapped = flag(wrapped)
    return wrapped


def command(
    name: str, *, cls: type[click.Command] = click.Command, **settings: Any
) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command of a function whose first argument is the State."""

    def make(function: Callable[..., None]) -> click.Command:
        return click.command(name, cls=cls, **settings)(_with_flags(function))

    return make


def group(
    name: str, *, cls: type[click.Group] = click.Group, **settings: Any
) -> Callable[[Callable[..., None]], click.Group]:
    """Make a group of commands; its function gets the State and may do what the group alone means."""

    def make(function: Callable[..., None]) -> click.Group:
        return click.group(name, cls=cls, **settings)(_with_flags(function))

    return make


class _NoCommand(UsageError):
    """The first word is no command, so nobody has read the flags yet."""

    code = "usage_error"


class Commands(click.Group):
    """The commands of a table from names to `module:attribute`; a module is imported when its command is called."""

    def __init__(self, *args: Any, table: Mapping[str, str], other_names: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._table = table
        self._other_names = other_names

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Give the names that help shows."""
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
        place = self._table.get(cmd_name) or self._other_names.get(cmd_name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        assert isinstance(found, click.Command)  # noqa: S101  # the table is ours
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown one is answered with the nearest. Raises: UsageError."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            from difflib import get_close_matches

            near = get_close_matches(args[0], [*self.list_commands(ctx), *self._other_names], n=1)
            raise _NoCommand(
                f"there is no command {args[0][:40]!r}",
                hint=f"did you mean `valetkey {near[0]}`?" if near else "see `valetkey --help`",
            )
        return super().resolve_command(ctx, args)


class _Root(Commands):
    """All commands, and one for each agent."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Give the names that help shows: agents that packages bring are found when they are called."""
        from valetkey.agents import BUILT_IN

        return [*super().list_commands(ctx), *BUILT_IN]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write them in groups."""
        from valetkey.agents import BUILT_IN

        width = max(map(len, self.list_commands(ctx)))
        for heading, group_of in GROUPS.items():
            names = [name for one in group_of for name in ([one] if one else BUILT_IN)]
            found = [(name, command) for name in names if (command := self.get_command(ctx, name)) is not None]
            with formatter.section(heading):
                limit = formatter.width - width - 6
                # Of one width, so that the groups are one table.
                formatter.write_dl([(f"{name:<{width}}", one.get_short_help_str(limit)) for name, one in found])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module, or make the command of an agent."""
        found = super().get_command(ctx, cmd_name)
        if found is not None:
            return found
        from valetkey.agents import agent_for

        agent = agent_for(cmd_name)
        if agent is None:
            return None
        from valetkey.cli.agents import command_for

        return command_for(agent)


@click.group(
    "valetkey",
    cls=_Root,
    table=COMMANDS,
    other_names=OTHER_NAMES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="valetkey", message="%(prog)s %(version)s")
@_FLAGS[0]
@_FLAGS[1]
@_FLAGS[2]
def valetkey() -> None:
    """Log in once to every AI provider; every tool then works.

    Begin with `valetkey login`; then `valetkey run claude`, `valetkey ask "hello"`, or `valetkey key create`.
    """


# --- the end ---------------------------------------------------------------------------------


def run(argv: Sequence[str], *, environ: Mapping[str, str] | None = None) -> int:
    """Run one command and give its exit status. Nothing comes out as a traceback."""
    state = State(environ=os.environ if environ is None else environ, words=argv)
    if state.interactive:
        from valetkey.cli.terminal import hear_prompts

        hear_prompts()
    status = 0
    try:
        status = _run(list(argv), state)
        _flush()
    except BrokenPipeError:
        _drop_output()
        return _PIPE_CLOSED
    except OSError as error:  # a full disk under stdout, found by the last flush
        _drop_output()
        return status or _fail(state, _from_system(error))
    except KeyboardInterrupt:
        return 130
    return status


def _run(argv: list[str], state: State) -> int:
    try:
        result = valetkey.main(args=argv, prog_name="valetkey", standalone_mode=False, obj=state)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (click.Abort, KeyboardInterrupt, EOFError):
        if is_terminal(sys.stderr):
            click.echo("", err=True)
        return 130
    except click.exceptions.NoArgsIsHelpError as help_wanted:
        click.echo(help_wanted.ctx.get_help() if help_wanted.ctx is not None else "", err=True)
        return 2
    except click.ClickException as error:
        state.json = state.json or "--json" in argv
        return _fail(state, _usage(error))
    except _NoCommand as error:
        state.json = state.json or "--json" in argv
        return _fail(state, error)
    except ValetkeyError as error:
        return _fail(state, error)
    except BrokenPipeError:
        raise
    except OSError as error:
        return _fail(state, _from_system(error))
    except Exception as error:
        return _unexpected(state, error)
    finally:
        state.close()


def _fail(state: State, error: ValetkeyError) -> int:
    from valetkey.log import redact

    message = redact(error.message)
    if error.exit_status == UsageError.exit_status:
        message = _without_keys(message, state.words)
    state.emit({"error": {**error.as_dict(), "message": message}})
    click.echo(f"valetkey: error: {plain(message)}", err=True)
    if error.hint:
        click.echo(f"valetkey: hint: {plain(error.hint)}", err=True)
    return error.exit_status


def _without_keys(message: str, words: Sequence[str]) -> str:
    """Take out what was typed where no key belongs and may be one: it is in the shell's history, not yet in a log."""
    for word in words:
        plain_word = word.startswith(("-", "/", ".", "~")) or "://" in word or not any(map(str.isdigit, word))
        if len(word) >= _SHORTEST_KEY and not plain_word:
            # Messages cut long words; the beginning is there.
            message = re.sub(re.escape(word[:_SHORTEST_KEY]) + r"[^\s'\"`)]*", "[not shown]", message)
    return message


def _from_system(error: OSError) -> ValetkeyError:
    name = f": {error.filename}" if isinstance(error.filename, str) else ""
    what = (error.strerror or type(error).__name__).lower()
    return ValetkeyError(f"{what}{name}", hint="check the path, its permissions and the free space")


def _usage(error: click.ClickException) -> UsageError:
    message = error.format_message().strip().rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    where = context.command_path if context is not None else "valetkey"
    return UsageError(message[:1].lower() + message[1:], hint=f"see `{where} --help`")


def _unexpected(state: State, error: Exception) -> int:
    """Tell where it happened and of what type it is; its text stays unsaid, it may hold anything."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if f"{os.sep}valetkey{os.sep}" in f.filename] or frames
    places = [f"{os.path.basename(f.filename)}:{f.lineno} in {f.name}" for f in ours]
    if state.verbose:
        for place in places:
            state.note(f"at {place}")
    return _fail(
        state,
        ValetkeyError(
            f"something went wrong inside Valetkey: {type(error).__name__} at {places[-1] if places else 'its start'}",
            hint="run it again with --verbose and report what it prints",
        ),
    )


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()


def _drop_output() -> None:
    """Point stdout at nothing, so that the interpreter's own last flush is quiet as well."""
    void = os.open(os.devnull, os.O_WRONLY)
    os.dup2(void, 1)


def stop(status: int) -> NoReturn:
    """End the command with this status and no message of its own."""
    raise click.exceptions.Exit(status)

"""`run`: an agent or a command in a sandbox."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from valetkey import serving
from valetkey.cli.frame import State, command
from valetkey.cli.runs import records_of, remove_run
from valetkey.errors import NoSuchProgram, NotLoggedIn, RunError, RunGoesOn, UsageError

if TYPE_CHECKING:
    from valetkey.gateway.runs import BegunRun
    from valetkey.runs.launch import Wanted
    from valetkey.runs.order import Order
    from valetkey.runs.record import Records, Run
    from valetkey.sandbox import Limits, Mount

__all__ = ["begin", "in_sandbox", "run"]

_SIZES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}


class _RunCommand(click.Command):
    """Takes its options behind an agent's name too, up to `--`: `run claude --continue -- -p hi`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options in front, and those behind an agent's name as if they stood there."""
        given = list(args)
        rest = super().parse_args(ctx, args)
        argv: tuple[str, ...] = ctx.params.get("argv") or ()
        if not argv[1:] or not argv[1].startswith("-"):
            return rest
        from valetkey.agents import agent_for

        if agent_for(argv[0]) is None:
            return rest
        in_front = given[: len(given) - len(argv)]
        if in_front[-1:] == ["--"]:  # all behind the first one is the agent's
            return rest
        end = argv.index("--") if "--" in argv else len(argv)
        return super().parse_args(ctx, [*in_front, *argv[1:end], "--", argv[0], *argv[end + 1 :]])


_IN_RUN = {"allow_interspersed_args": False, "ignore_unknown_options": False}


@command(
    "run",
    cls=_RunCommand,
    short_help="Run an agent or a command in a sandbox that holds no credential.",
    context_settings=_IN_RUN,
)
@click.option(
    "--grant", "names", metavar="PROVIDER[@ACCOUNT]", multiple=True, help="An account it may use; repeatable."
)
@click.option("--allow", metavar="HOST", multiple=True, help="Another host it may reach, without a credential.")
@click.option("--mcp", "mcp_names", metavar="NAME", multiple=True, help="An MCP server it may use; repeatable.")
@click.option("--policy", "file", type=click.Path(path_type=Path), help="What it may ask for.")
@click.option("--workspace", type=click.Path(path_type=Path), help="Its folder; without it: this one.")
@click.option("--read-only", is_flag=True, help="Let it only read the workspace.")
@click.option("--mount", "mounts", metavar="DIR[:rw]", multiple=True, help="Another folder it sees, at the same path.")
@click.option("--env", "variables", metavar="NAME[=VALUE]", multiple=True, help="A variable it gets; repeatable.")
@click.option("--memory", metavar="SIZE", help="How much memory it may use, such as 4g.")
@click.option("--pids", type=click.IntRange(1), help="How many processes it may have.")
@click.option("--time", "seconds", type=click.FloatRange(0, min_open=True), help="Seconds after which it is ended.")
@click.option("--sandbox", metavar="NAME", help="bubblewrap, podman or docker (default: runs.sandbox).")
@click.option("--image", metavar="IMAGE", help="What a container is made of (default: runs.image).")
@click.option("--resume", metavar="RUN", help="Go on with the last session of this run of the agent.")
@click.option("--continue", "go_on", is_flag=True, help="Go on with the agent's last run in the workspace.")
@click.argument("argv", metavar="AGENT | -- CMD [ARG]…", nargs=-1, type=click.UNPROCESSED, required=True)
def run(
    state: State,
    *,
    names: tuple[str, ...],
    allow: tuple[str, ...],
    mcp_names: tuple[str, ...],
    file: Path | None,
    workspace: Path | None,
    read_only: bool,
    mounts: tuple[str, ...],
    variables: tuple[str, ...],
    memory: str | None,
    pids: int | None,
    seconds: float | None,
    sandbox: str | None,
    image: str | None,
    resume: str | None,
    go_on: bool,
    argv: tuple[str, ...],
) -> None:
    """Run an agent or a command in a sandbox. It sees the workspace, a home of its own, and no credential of yours.

    The only way out is the gateway, which puts in what --grant names. Everything else is refused. Of an AWS account it
    gets real keys: short-lived ones of the role that the account names.
    """
    from valetkey import mcp
    from valetkey.agents import agent_for
    from valetkey.cli import agents
    from valetkey.gateway import policy as policies
    from valetkey.runs.launch import Wanted
    from valetkey.sandboxes import sandbox_for
    from valetkey.workspace import check_workspace

    _hint_at_ask(argv)
    agent, earlier = agent_for(argv[0]), None
    if resume is not None or go_on:
        if agent is None:
            raise UsageError("only an agent goes on", hint="name it: `valetkey run claude --continue`")
        earlier = agents.earlier_run(state, agent, resume, workspace=workspace or Path())
    folder = workspace or (Path() if earlier is None else Path(earlier.workspace))
    wanted = Wanted(
        command=argv,
        grants=tuple(state.broker.resolve(name) for name in names),
        workspace=check_workspace(folder, home=Path.home(), valetkey_home=state.paths.home),
        read_only=read_only,
        mounts=tuple(_mount(state, text) for text in mounts),
        allow=allow,
        policy=None if file is None else policies.text_of(file),
        policy_file="" if file is None else file.name,
        variables=_variables(state.environ, variables),
        named=tuple(name + given for name, given, _ in (text.partition("=") for text in variables)),
        limits=_limits(memory, pids, seconds),
        servers=mcp.chosen(state.config, mcp_names or (None if earlier is None else earlier.mcp)),
        sandbox=sandbox,
        image=image,
    )
    if earlier is not None:
        wanted = agents.going_on(state, wanted, earlier)
    if agent is not None:
        wanted = agents.for_agent(state, agent, wanted, argv[1:])
    elif not sandbox_for(in_sandbox(state, wanted).sandbox or "").own_programs:
        _check_program(wanted)
    begin(state, wanted)


def begin(state: State, wanted: Wanted) -> NoReturn:
    """Begin a run, and become its parent."""
    import valetkey
    from valetkey.cli.login import log_in_now
    from valetkey.gateway import background
    from valetkey.gateway.trust import system_bundle
    from valetkey.runs.launch import missing_tools, ready, sweep
    from valetkey.runs.parent import become
    from valetkey.sandboxes import sandbox_for

    wanted = in_sandbox(state, wanted)
    sandbox = sandbox_for(wanted.sandbox or "", image=wanted.image or "")
    if os.geteuid() == 0:
        raise RunError(
            "root starts no run: what is inside would be root to the files that it has",
            hint="start it as an ordinary user: `sudo -u USER valetkey run …`",
        )
    background.up(state.paths, environ=state.environ, version=valetkey.__version__, tell=state.progress)
    granting, records = _Granting(state), records_of(state)
    for lost in sweep(records, granting, state.audit, clear=_clear):
        state.note(f"the run {lost.id} had lost its parent: what it was granted is taken back")
    _forget_the_old(state, records)
    for provider, tool in missing_tools(wanted, state.catalogue, sandbox):
        state.note(f"{provider} is mostly used by {tool}, which is not in the sandbox")
    make = partial(
        ready,
        wanted,
        granting=granting,
        records=records,
        audit=state.audit,
        sandbox=sandbox,
        home=state.paths.home,
        system_bundle=system_bundle(state.environ),
        environ=state.environ,
    )
    try:
        made = make()
    except NotLoggedIn as missing:
        log_in_now(state, missing, missing.accounts)
        made = make()
    if state.verbose:
        state.note(f"run {made.run.id}: {', '.join(made.run.grants) or 'no account'}")
    state.broker.close()
    become(made.order, made.lock.outlive())


def in_sandbox(state: State, wanted: Wanted) -> Wanted:
    """Give what is wanted with its sandbox and image named, as the settings have them where it does not say."""
    from valetkey.sandboxes import sandbox_for

    name = wanted.sandbox or state.config.text("runs.sandbox") or ""
    image = wanted.image
    if image is None and sandbox_for(name).own_programs:
        image = state.config.text("runs.image")
    return replace(wanted, sandbox=name, image=image)


def _clear(run: Run) -> None:
    from valetkey.sandboxes import sandbox_for

    sandbox_for(run.sandbox, run=run.id).clear()


def _forget_the_old(state: State, records: Records) -> None:
    keep_days, most_mb = state.config.count("runs.keep_days"), state.config.count("runs.max_mb")
    for old in records.outdated(keep_days=keep_days, most_bytes=most_mb * 2**20):
        with suppress(RunGoesOn, OSError):  # somebody has just begun to go on with it, or removes it too
            remove_run(state, records, old)


def _hint_at_ask(argv: tuple[str, ...]) -> None:
    if len(argv) == 1 and " " in argv[0].strip():
        raise UsageError(
            f"there is no command {argv[0][:40]!r}",
            hint='name an agent before it: `valetkey run claude -- -p "…"`; `valetkey ask "…"` asks a model',
        )


def _check_program(wanted: Wanted) -> None:
    """Raises: NoSuchProgram where the sandbox has none of this name, and nothing could have brought one."""
    from difflib import get_close_matches

    from valetkey.agents import BUILT_IN
    from valetkey.runs.environment import PATH

    name = wanted.command[0]
    if "/" in name or "PATH" in wanted.variables or shutil.which(name, path=PATH) is not None:
        return
    near, outside = get_close_matches(name, BUILT_IN, n=1, cutoff=0.75), shutil.which(name)
    if near:
        hint = f"did you mean `valetkey run {near[0]}`?"
    elif outside is not None:
        hint = f"{outside} is not inside: mount its folder (`--mount DIR`) and write its whole path"
    else:
        hint = "a sandbox has what is below /usr; write the path of a program that lies elsewhere, such as `./run`"
    raise NoSuchProgram(f"there is no program {name[:40]!r} in the sandbox", hint=hint)


def _mount(state: State, text: str) -> Mount:
    from valetkey.sandbox import Mount
    from valetkey.workspace import check_mount

    path, _, mode = text.rpartition(":") if text.endswith((":rw", ":ro")) else (text, "", "ro")
    mount = Mount(source=Path(path), target=os.path.abspath(path), read_only=mode != "rw")
    return check_mount(mount, home=Path.home(), valetkey_home=state.paths.home)


def _variables(environ: Mapping[str, str], texts: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for text in texts:
        name, given, value = text.partition("=")
        if not name or (not given and name not in environ):
            raise UsageError(f"--env {name[:40]!r} is not set here", hint="write --env NAME=VALUE, or set it")
        found[name] = value if given else environ[name]
    return found


def _limits(memory: str | None, pids: int | None, seconds: float | None) -> Limits:
    from valetkey.sandbox import Limits

    size = None
    if memory is not None:
        number, unit = (memory[:-1], memory[-1].lower()) if memory[-1:].isalpha() else (memory, "")
        if not number.isascii() or not number.isdigit() or unit not in _SIZES or int(number) == 0:
            raise UsageError(f"--memory {memory[:40]!r} is no size", hint="write 512m or 4g")
        size = int(number) * _SIZES[unit]
    return Limits(memory_bytes=size, processes=pids, seconds=seconds, file_bytes=None)


class _Granting:
    """The gateway's side of a run, by way of the store."""

    def __init__(self, state: State) -> None:
        from valetkey.gateway.runs import Runs

        self._state = state
        self._runs = Runs(state.store, state.clock)

    def begin(self, run: str, wanted: Wanted) -> BegunRun:
        """Grant it; the gateway's socket is there on return."""
        from valetkey.mcp import Relayed

        state = self._state
        begun = self._runs.begin(
            run=run,
            grants=wanted.grants,
            catalogue=state.catalogue,
            environ=state.environ,
            paths=state.paths,
            agent=wanted.agent,
            policy=wanted.policy,
            policy_file=wanted.policy_file,
            allow=wanted.allow,
            servers=[server for server in wanted.servers if isinstance(server, Relayed)],
        )
        serving.poke(str(state.paths.home))
        return begun

    def keep(self, order: Order) -> None:
        """Keep it."""
        from valetkey.runs.joining import kept

        self._runs.keep_order(order.run, kept(order))

    def end(self, run: str) -> None:
        """Take it back."""
        self._runs.end(run)

    def live(self) -> list[str]:
        """Give the ids of all."""
        return [run_id for run_id, _ in self._runs.each()]

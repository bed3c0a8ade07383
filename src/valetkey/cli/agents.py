"""The commands of an agent: `AGENT [ARG]…`, `AGENT sessions`, `AGENT resume`; and what makes a run one of an agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from valetkey.agent import Agent, Login, Session
from valetkey.cli.frame import State, command, group
from valetkey.cli.output import ago
from valetkey.credential import CredentialRef, login_command
from valetkey.errors import NotLoggedIn, RunError, UnknownSession, UsageError, WorkspaceRefused

if TYPE_CHECKING:
    from valetkey.runs.launch import Wanted
    from valetkey.runs.record import Records, Run
    from valetkey.sandbox import Limits, Mount

__all__ = ["command_for", "earlier_run", "for_agent", "go_on_with", "going_on"]

_SHORTEST_PREFIX = 4


def command_for(agent: Agent) -> click.Group:
    """Make the command of an agent."""

    @group(agent.id, cls=_AgentGroup, short_help=f"Run {agent.id} in a sandbox that holds no credential.")
    def ours(state: State) -> None: ...

    ours.help = (
        f"Run {agent.id} in this folder: all words but the commands below go to it as they are. Options of the run"
        f" itself (grants, policy, limits) are those of `valetkey run {agent.id} [OPTION]… -- [ARG]…`."
    )

    # Hidden, for it is what any other word means.
    @command(_START, hidden=True, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
    @click.argument("argv", nargs=-1, type=click.UNPROCESSED)
    def start(state: State, *, argv: tuple[str, ...]) -> None:
        """Run it."""
        _begin(state, agent, Path(), argv)

    @command("sessions", short_help=f"List the sessions of {agent.id}.")
    def sessions(state: State) -> None:
        """List the sessions that its runs left, the last used first."""
        found = _sessions(state, agent)
        state.emit({"sessions": [_as_dict(session, run) for session, run in found]})
        if not found:
            state.say(f"No run of {agent.id} has left a session yet. Begin with `valetkey {agent.id}`.")
            return
        now = state.clock.now()
        rows = [(session.id, ago(session.used_at, now), run.id, run.workspace) for session, run in found]
        state.table(["ID", "USED", "RUN", "WORKSPACE"], rows)

    @command("resume", short_help="Go on with a session.", context_settings={"allow_interspersed_args": False})
    @click.argument("id", metavar="ID")
    @click.argument("argv", metavar="[ARG]…", nargs=-1, type=click.UNPROCESSED)
    def resume(state: State, *, id: str, argv: tuple[str, ...]) -> None:
        """Go on with a session: a new run, with the home, the workspace and the grants of the one that it was in."""
        fitting = [(s, run) for s, run in _sessions(state, agent) if s.id == id or _begins(s.id, id)]
        if len(fitting) != 1:
            which = "more than one session begins with" if fitting else "there is no session"
            raise UnknownSession(f"{which} {id[:40]!r}", hint=f"see `valetkey {agent.id} sessions`")
        ((session, run),) = fitting
        _begin(state, agent, Path(run.workspace), _words(argv), earlier=run, session=session.id)

    for made in (start, sessions, resume):
        ours.add_command(made)
    return ours


_START = "start"


class _AgentGroup(click.Group):
    """Gives every word that is no command of ours to the agent."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See click."""
        if not args or args[0] not in {"sessions", "resume", "--help", "-h"}:
            args = [_START, "--", *_words(args)]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Give those that help shows."""
        return ["sessions", "resume"]


def _words(argv: Sequence[str]) -> tuple[str, ...]:
    """Give what an agent gets: a first `--` only says that nothing behind it is ours."""
    return tuple(argv[1:] if argv[:1] in (["--"], ("--",)) else argv)


def _begins(id: str, prefix: str) -> bool:
    return len(prefix) >= _SHORTEST_PREFIX and id.startswith(prefix)


def _begin(
    state: State,
    agent: Agent,
    workspace: Path,
    arguments: Sequence[str],
    *,
    earlier: Run | None = None,
    session: str | None = None,
) -> None:
    from valetkey import mcp
    from valetkey.cli.run import begin
    from valetkey.runs.launch import Wanted
    from valetkey.workspace import check_workspace

    folder = check_workspace(workspace, home=Path.home(), valetkey_home=state.paths.home)
    servers = mcp.chosen(state.config, None if earlier is None else earlier.mcp)
    wanted = Wanted(command=(), grants=(), workspace=folder, servers=servers)
    if earlier is not None:
        wanted = going_on(state, wanted, earlier)
    begin(state, for_agent(state, agent, wanted, arguments, session=session))


# --- a run for an agent -----------------------------------------------------------------------


def for_agent(
    state: State, agent: Agent, wanted: Wanted, arguments: Sequence[str], *, session: str | None = None
) -> Wanted:
    """Give what is wanted with all that this agent needs, or going on with one of its sessions.

    `home_of` without a session: with the last one of that home. Raises: AgentNotInstalled, NotLoggedIn, UnknownSession,
    WorkspaceRefused, BrokenAgent, ProviderError, StoreError.
    """
    from valetkey.agents import chosen
    from valetkey.agents.program import Program, located
    from valetkey.cli.run import in_sandbox
    from valetkey.sandboxes import sandbox_for

    if wanted.home_of is not None and session is None:
        session = _last_session(_records(state), agent, wanted.home_of)
    grants = wanted.grants
    login, usable = chosen(agent, [_login(state, ref) for ref in grants])
    if login is None:
        login, grants = _login(state, own := _own_account(state, agent)), (own, *grants)
    if usable > 1 or state.verbose:
        state.note(f"{agent.id} uses {login.ref}" + (f", by its login {login.method}" if login.method else ""))
    wanted = in_sandbox(state, wanted)
    if sandbox_for(wanted.sandbox or "").own_programs:
        program = Program(command=(agent.program,))  # the image's
    else:
        program = located(
            agent,
            configured=state.config.agent_program(agent.id),
            environ=state.environ,
            home=Path.home(),
            valetkey_home=state.paths.home,
        )
    return replace(
        wanted,
        command=agent.command(program.command, arguments, session),
        grants=grants,
        program=program.mounts,
        agent=agent.id,
        account=login.ref,
        method=login.method,
        dialect=login.dialect,
        model=login.model,
        prepare=agent.prepare,
    )


def going_on(state: State, wanted: Wanted, earlier: Run) -> Wanted:
    """Give what is wanted, in the home of an earlier run, under what held for that where nothing else is said.

    Raises: UsageError for a variable whose value nobody knows any more; WorkspaceRefused.
    """

    # Nothing that the earlier one was held to may be lost by going on with it.
    if wanted.policy is None:
        wanted = replace(wanted, policy=earlier.policy, policy_file=earlier.policy_file)
    return replace(
        wanted,
        grants=wanted.grants or tuple(state.broker.resolve(name) for name in earlier.grants),
        read_only=wanted.read_only or earlier.read_only,
        allow=wanted.allow or earlier.allow,
        mounts=wanted.mounts or tuple(_checked(state, mount) for mount in earlier.mounts),
        limits=_limits(wanted.limits, earlier.limits),
        variables={**_again(state, earlier, wanted.variables), **wanted.variables},
        named=(*wanted.named, *(text for text in earlier.variables if text.rstrip("=") not in wanted.variables)),
        home_of=earlier.home_of or earlier.id,
        # What an agent of one machine left in its home may be of no use to that of another.
        sandbox=wanted.sandbox or earlier.sandbox,
        image=wanted.image or (earlier.image if wanted.sandbox in (None, earlier.sandbox) else None) or None,
    )


def _limits(now: Limits, earlier: Limits) -> Limits:
    """Give the limits that are said now, and the earlier ones where nothing is."""
    return replace(earlier, **{name: value for name, value in asdict(now).items() if value is not None})


def _checked(state: State, mount: Mount) -> Mount:
    from valetkey.workspace import check_mount

    # The earlier run may have put a link in its place.
    if mount.source.resolve() != mount.source:
        raise WorkspaceRefused(f"{mount.source} is not what it was for the earlier run", hint="name it with --mount")
    return check_mount(mount, home=Path.home(), valetkey_home=state.paths.home)


def _again(state: State, earlier: Run, given: Mapping[str, str]) -> dict[str, str]:
    """Give the variables of an earlier run that are in the environment still; a value that was typed is not kept."""
    names = [text for text in earlier.variables if text.rstrip("=") not in given]
    missing = [text.rstrip("=") for text in names if text.endswith("=") or text not in state.environ]
    if missing:
        again = " ".join(f"--env {name}=VALUE" for name in missing)
        raise UsageError(
            f"the run {earlier.id} had values for {', '.join(missing)}, which are not kept",
            hint=f"give them again: `valetkey run {earlier.agent} --resume {earlier.id} {again}`",
        )
    return {name: state.environ[name] for name in names}


def earlier_run(state: State, agent: Agent, name: str | None, *, workspace: Path) -> Run:
    """Give the run of this id, else the last one of the agent in this workspace. Raises: UnknownRun, RunError."""
    records = _records(state)
    if name is None:
        folder = str(workspace.resolve())
        found = next((run for run in records.all() if (run.agent, run.workspace) == (agent.id, folder)), None)
        if found is None:
            raise RunError(f"no run of {agent.id} has been in {folder}", hint=f"begin one: `valetkey run {agent.id}`")
        return found
    found = records.find(name)
    if found.agent != agent.id:
        raise UsageError(f"the run {found.id} was none of {agent.id}", hint="see `valetkey runs list`")
    return found


def go_on_with(state: State, run: Run, argv: Sequence[str]) -> None:
    """Begin a run that goes on with this one's last session. Raises: UsageError where no agent could."""
    from valetkey.agents import agent_for

    agent = None if run.agent is None else agent_for(run.agent)
    if agent is None:
        raise UsageError(
            f"the run {run.id} had no agent that could go on", hint="start its command again: `valetkey run -- CMD`"
        )
    _begin(state, agent, Path(run.workspace), _words(argv), earlier=run)


def _login(state: State, ref: CredentialRef) -> Login:
    provider, account = state.catalogue.get(ref.provider), state.store.account(ref)
    method = None if account is None else provider.method(account.method)
    return Login(
        ref=ref,
        method=None if account is None else account.method,
        dialect=provider.api.dialect,
        model=provider.default_model,
        for_agents=() if method is None else method.for_agents,
    )


def _own_account(state: State, agent: Agent) -> CredentialRef:
    """Give the default account of the first provider of the agent's own that has one; a terminal is offered a login."""
    refs = [state.broker.resolve(provider) for provider in agent.providers]
    found = next((ref for ref in refs if state.store.account(ref) is not None), None)
    if found is not None:
        return found
    from valetkey.cli.login import log_in_to_one

    commands = " or ".join(f"`{login_command(ref)}`" for ref in refs)
    missing = NotLoggedIn(
        f"there is no account that {agent.id} could use", provider=refs[0].provider, hint=f"run {commands}"
    )
    return log_in_to_one(state, missing, [state.catalogue.get(ref.provider) for ref in refs])


# --- sessions ---------------------------------------------------------------------------------


def _sessions(state: State, agent: Agent) -> list[tuple[Session, Run]]:
    """Give every session of an agent with the last run that had its home, the last used first."""
    records = _records(state)
    homes: dict[Path, Run] = {}
    for run in records.all():
        if run.agent == agent.id:
            homes.setdefault(records.home(run), run)
    found = [(session, run) for home, run in homes.items() for session in agent.sessions(home)]
    return sorted(found, key=lambda one: one[0].used_at, reverse=True)


def _last_session(records: Records, agent: Agent, home_of: str) -> str:
    found = agent.sessions(records.home(records.find(home_of)))
    if not found:
        raise UnknownSession(f"the run {home_of} left no session of {agent.id}", hint="begin a new one")
    return found[0].id


def _records(state: State) -> Records:
    from valetkey.runs.record import Records

    return Records(state.paths, state.clock)


def _as_dict(session: Session, run: Run) -> dict[str, Any]:
    return {
        "id": session.id,
        "used_at": session.used_at,
        "run": run.id,
        "workspace": run.workspace,
        "grants": list(run.grants),
    }

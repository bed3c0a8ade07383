"""Makes a run ready: from what a person asked for to the order for its parent. It knows no provider and no agent."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from valetkey.agent import McpServer, Prepared, Served
from valetkey.agents import home as homes
from valetkey.audit.recorder import Audit, person
from valetkey.credential import CredentialRef
from valetkey.errors import RunError, UsageError
from valetkey.mcp import Server
from valetkey.provider import DialectId
from valetkey.providers import Catalogue
from valetkey.runs.environment import ADDRESS, PATH, divided, environment, files, mcp_file, mcp_servers
from valetkey.runs.order import Order
from valetkey.runs.record import Records, Run
from valetkey.sandbox import Limits, Mount, Sandbox, Spec
from valetkey.stores.locks import FileLock

__all__ = ["Begun", "Granting", "Ready", "Wanted", "missing_tools", "ready", "sweep"]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a person asked for. `policy` is a text, `allow` are hosts, `variables` go in as they are.

    `servers` are MCP servers; their accounts need not be among the grants, and serve nothing else then.

    `named` is what is kept of the variables, as in `Run.variables`. `program` is mounted for the command itself.
    `sandbox` and `image` are None where nobody has named them.

    Where it is an agent that runs, `account` is the one of the grants that it uses, `method` the login of that,
    `dialect` and `model` what its provider speaks and which model is its usual one, and `prepare` makes its home ready.
    `home_of` is an earlier run whose home this one goes on with.
    """

    command: tuple[str, ...]
    grants: tuple[CredentialRef, ...]
    workspace: Path
    read_only: bool = False
    mounts: tuple[Mount, ...] = ()
    allow: tuple[str, ...] = ()
    policy: str | None = None
    policy_file: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    named: tuple[str, ...] = ()
    program: tuple[Mount, ...] = ()
    limits: Limits = field(default_factory=Limits)
    servers: tuple[Server, ...] = ()
    agent: str | None = None
    account: CredentialRef | None = None
    method: str | None = None
    dialect: DialectId = "none"
    model: str | None = None
    prepare: Callable[[Path, Served], Prepared] | None = None
    home_of: str | None = None
    sandbox: str | None = None
    image: str | None = None


class Begun(Protocol):
    """A run as the gateway knows it."""

    @property
    def environment(self) -> Mapping[CredentialRef, Mapping[str, str]]:
        """The variables that each account wants inside, with placeholders where credentials would stand."""
        ...

    @property
    def files(self) -> Mapping[CredentialRef, Mapping[str, str]]:
        """The files that each account wants inside, likewise: their declared paths and texts."""
        ...

    @property
    def placeholders(self) -> Mapping[CredentialRef, Mapping[str, str]]:
        """What stands for the credential of each account, by variable; "" is the one for files."""
        ...

    @property
    def certificate(self) -> str:
        """The run's own authority, as PEM."""
        ...

    @property
    def folder(self) -> Path:
        """The folder in which the gateway's socket for it lies."""
        ...


class Granting(Protocol):
    """The gateway's side of a run."""

    def begin(self, run: str, wanted: Wanted) -> Begun:
        """Grant it what is wanted. Raises: NotLoggedIn, which names all that is missing; ConfigError for the policy."""
        ...

    def keep(self, order: Order) -> None:
        """Keep the order for who joins the run, sealed, until it is ended."""
        ...

    def end(self, run: str) -> None:
        """Take back what it was granted."""
        ...

    def live(self) -> Sequence[str]:
        """Give the ids of all that are granted something."""
        ...


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A run that can be started. Its lock is held: whoever becomes its parent takes that over."""

    run: Run
    lock: FileLock
    order: Order


def ready(
    wanted: Wanted,
    *,
    granting: Granting,
    records: Records,
    audit: Audit,
    sandbox: Sandbox,
    home: Path,
    system_bundle: bytes,
    environ: Mapping[str, str],
) -> Ready:
    """Grant, record and write the order; what was begun is taken back where anything fails.

    Raises: SandboxUnavailable, AuditUnwritable, and what `Granting.begin` and `Records.create` raise.
    """
    sandbox.check()
    run, lock = records.create(
        wanted.command,
        grants=tuple(str(ref) for ref in wanted.grants),
        workspace=wanted.workspace,
        sandbox=sandbox.id,
        image=wanted.image or "",
        agent=wanted.agent,
        account=None if wanted.account is None else str(wanted.account),
        method=wanted.method,
        home_of=wanted.home_of,
        read_only=wanted.read_only,
        allow=wanted.allow,
        policy=wanted.policy,
        policy_file=wanted.policy_file,
        mcp=tuple(server.name for server in wanted.servers),
        mounts=wanted.mounts,
        variables=wanted.named,
        limits=wanted.limits,
    )
    with _taken_back(run, records, granting, lock):
        records.check_home(run)
        begun = granting.begin(run.id, wanted)
        put, declared = divided(begun.files[ref] for ref in wanted.grants if ref in begun.files)
        for path, text in put.items():
            homes.write(records.home(run), path, text.encode())
        servers = mcp_servers(wanted.servers)
        prepared = _prepared(wanted, begun, records.home(run), servers)
        spec = Spec(
            command=wanted.command,
            workspace=wanted.workspace,
            workspace_read_only=wanted.read_only,
            home=records.home(run),
            gateway=begun.folder,
            environment=environment(
                environ, placeholders=_placeholders(wanted, begun, prepared), asked=wanted.variables
            ),
            files={
                **declared,
                **prepared.files,
                **mcp_file(servers),
                **files(begun.certificate.encode(), system_bundle),
            },
            mounts=(*wanted.mounts, *wanted.program),
            limits=wanted.limits,
        )
        told: dict[str, object] = {
            "by": person(),
            "program": run.command[0],
            "grants": list(run.grants),
            "workspace": run.workspace,
        }
        told |= {"mcp": list(run.mcp)} if run.mcp else {}
        audit.append("run-started", who=f"run:{run.id}", detail=told)
        order = Order(run=run.id, folder=records.at(run), home=home, sandbox=sandbox.id, image=run.image, spec=spec)
        granting.keep(order)
    return Ready(run=run, lock=lock, order=order)


def _prepared(wanted: Wanted, begun: Begun, home: Path, servers: tuple[McpServer, ...]) -> Prepared:
    ref = wanted.account
    if wanted.prepare is None or ref is None:
        return Prepared()
    served = Served(
        ref=ref,
        base_url=f"{ADDRESS}/{ref}",
        dialect=wanted.dialect,
        model=wanted.model,
        placeholder=begun.placeholders[ref][""],
        variables=begun.environment.get(ref, {}),
        mcp_servers=servers,
    )
    return wanted.prepare(home, served)


def _placeholders(wanted: Wanted, begun: Begun, prepared: Prepared) -> dict[str, str]:
    found: dict[str, str] = {}
    # The account that was granted first has the variable that two of them share.
    for ref in wanted.grants:
        found = dict(begun.environment.get(ref, {})) | found
    return {name: value for name, value in found.items() if name not in prepared.without} | dict(prepared.environment)


@contextlib.contextmanager
def _taken_back(run: Run, records: Records, granting: Granting, lock: FileLock) -> Iterator[None]:
    try:
        yield
    except BaseException:
        granting.end(run.id)
        lock.release()
        shutil.rmtree(records.at(run))
        raise


def sweep(records: Records, granting: Granting, audit: Audit, *, clear: Callable[[Run], None]) -> list[Run]:
    """Take back what runs had whose parent was killed, and give them: nobody else could.

    `clear` ends what may be left of one inside; where it cannot now, the next sweep tries again.
    """
    for run_id in granting.live():
        if not records.is_alive(run_id):
            granting.end(run_id)
    lost = []
    for run in [run for run in records.all() if records.state(run) == "lost"]:
        try:
            clear(run)
        except (RunError, UsageError):  # no engine, or a sandbox of another version
            continue
        lost.append(run)
        records.end(run, None)
        audit.tell("run-stopped", who=f"run:{run.id}", detail={"lost": "its parent was killed"})
    return lost


def missing_tools(wanted: Wanted, catalogue: Catalogue, sandbox: Sandbox) -> list[tuple[str, str]]:
    """Give the programs that a grant is mostly for and that the sandbox does not have, each with its provider.

    An agent is the tool of its own account, wherever its program lies. Raises: what `Sandbox.lacking` raises.
    """
    own = None if wanted.account is None else wanted.account.provider
    providers = dict.fromkeys(ref.provider for ref in wanted.grants if ref.provider != own)
    tools = [(name, tool) for name in providers for tool in catalogue.get(name).tools]
    missing = sandbox.lacking([tool for _, tool in tools], path=PATH) if tools else ()
    return [(name, tool) for name, tool in tools if tool in missing]

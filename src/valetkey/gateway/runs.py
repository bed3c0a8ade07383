"""Runs as the gateway knows them: what one was granted, its placeholders, its authority. Each is a sealed document."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

from valetkey import serving
from valetkey.access import defaults_of
from valetkey.account_state import state_of
from valetkey.address import is_near
from valetkey.clock import Clock
from valetkey.config import Paths
from valetkey.credential import CredentialRef, Health, Secret, login_command
from valetkey.endpoints import endpoint_for
from valetkey.errors import InvalidName, NotLoggedIn, RecordDamaged, UnknownRun, UsageError
from valetkey.gateway import access_requests, pattern, placeholders, run_authority
from valetkey.gateway import grants as grants_of
from valetkey.gateway import policy as policies
from valetkey.gateway.access_requests import AccessRequest
from valetkey.gateway.decide import Client, Grant
from valetkey.gateway.documents import each, limits_in, ref_in, text_in, texts_in, time_in
from valetkey.gateway.limits import Limits
from valetkey.gateway.normal import Malformed, normalise
from valetkey.gateway.pattern import WrongPattern
from valetkey.gateway.place import LONGEST_RUN, run_folder
from valetkey.gateway.policy import GRANTED_ALONE, Policy, Rule
from valetkey.inject import fill
from valetkey.mcp import Relayed
from valetkey.provider import AuthMethod, Sandbox
from valetkey.providers import Catalogue
from valetkey.sandbox import ADDRESS
from valetkey.store import Document, Store
from valetkey.stores import modes

__all__ = ["ENDPOINT_TOKEN", "BegunRun", "Run", "Runs", "client_of", "policy_of"]

# Among an account's placeholders, which are by variable: the one that its endpoint wants to see.
ENDPOINT_TOKEN = "{token}"

# By account, then by variable or path.
_Texts = dict[CredentialRef, dict[str, str]]

_KIND, _ORDER = "run", "run-order"
_FORMAT = 1
_FIELDS = {
    "format",
    "grants",
    "agent",
    "policy",
    "policy_file",
    "allow",
    "limits",
    "servers",
    "relayed_alone",
    "folder",
    "created_at",
    "placeholders",
    "authority_key",
    "certificate",
}
# It is a folder's name, and stands in answers and traces.
_ID = re.compile(rf"[a-z0-9][a-z0-9-]{{0,{LONGEST_RUN - 1}}}\Z")
# With one of these a request would be refused, whatever it is.
_DEAD = frozenset((Health.NEEDS_LOGIN, Health.EXPIRED))


@dataclass(frozen=True, kw_only=True)
class Run:
    """A live run as it is kept. `policy` is the text of its file ("" for none), `allow` the hosts beside the grants.

    `placeholders` are by account and by variable, "" for the one that stands in no variable. `folder` is where its
    socket is. `certificate` is PEM, and so is the key. `servers` are the MCP servers that are relayed to it,
    `relayed_alone` the grants that serve these and nothing else. `access` is what it asked a person for since, and is
    kept apart.
    """

    id: str
    grants: tuple[CredentialRef, ...]
    agent: str | None
    policy: str
    policy_file: str
    allow: tuple[str, ...]
    limits: Limits
    folder: Path
    created_at: datetime
    placeholders: Mapping[CredentialRef, Mapping[str, str]] = field(repr=False)
    authority_key: Secret
    certificate: str = field(repr=False)
    access: tuple[AccessRequest, ...] = ()
    servers: tuple[Relayed, ...] = ()
    relayed_alone: tuple[CredentialRef, ...] = ()

    @property
    def name(self) -> str:
        """What it is called in the trace and where a person decides."""
        return f"run {self.id}"

    @property
    def all_grants(self) -> tuple[CredentialRef, ...]:
        """The accounts that it was granted, and those that a person has let it have since."""
        return tuple(dict.fromkeys((*self.grants, *(ref for ref, _ in self._approved_grants()))))

    @property
    def all_placeholders(self) -> Mapping[CredentialRef, Mapping[str, str]]:
        """The placeholders of all of them."""
        return {ref: {"": text} for ref, text in self._approved_grants()} | dict(self.placeholders)

    @property
    def whole_policy(self) -> Policy:
        """What it may ask for: what a person has approved, its policy, and the hosts beside. Raises: ConfigError."""
        base = policy_of(self.policy, file=self.policy_file, allow=self.allow)
        return replace(base, rules=(*access_requests.rules(self.access), *base.rules))

    def once_by(self, place: str) -> str:
        """Give the id of its request for access by which the rule at `place` lets something through once; else ""."""
        once = [r.id for r in self.access if r.scope == "once" and r.state == "approved"]
        return next((one for one in once if place == access_requests.place_of(one)), "")

    def _approved_grants(self) -> Iterator[tuple[CredentialRef, str]]:
        for request in self.access:
            if request.grant is not None and request.state == "approved":
                yield request.grant, request.placeholder


@dataclass(frozen=True, kw_only=True)
class BegunRun:
    """What a sandbox is made with.

    `placeholders`: by account, then by variable; "" is the one for files. `environment`: by account, the variables that
    its declaration wants in a sandbox, filled in; `files`: likewise paths, as declared, and texts. `certificate`: the
    PEM of the run's own authority, to be believed inside. `folder`: the folder with `gateway.sock`, which is there once
    the gateway has looked (`serving.poke`).
    """

    id: str
    grants: tuple[CredentialRef, ...]
    placeholders: Mapping[CredentialRef, Mapping[str, str]] = field(repr=False)
    environment: Mapping[CredentialRef, Mapping[str, str]] = field(repr=False)
    files: Mapping[CredentialRef, Mapping[str, str]] = field(repr=False)
    certificate: str = field(repr=False)
    folder: Path


class Runs:
    """The live runs of a store, by whichever process they were begun."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def begin(
        self,
        *,
        run: str,
        grants: Sequence[CredentialRef],
        catalogue: Catalogue,
        environ: Mapping[str, str],
        paths: Paths,
        agent: str | None = None,
        policy: str | None = None,
        policy_file: str = "",
        allow: Sequence[str] = (),
        limits: Limits | None = None,
        servers: Sequence[Relayed] = (),
    ) -> BegunRun:
        """Begin a run of this id. It may use `grants` and go to the hosts of `allow` (`host`, `host:port`).

        The accounts of `servers` that are not in `grants` serve these servers alone.

        Raises: UsageError; ConfigError for the policy; NotLoggedIn, which names every account without a live login;
        NotForThisUse, where a login is not for this agent; EndpointUnavailable; ProviderError, StoreError, WrongMode.
        """
        if not _ID.match(run):
            raise UsageError(
                f"{run[:40]!r} cannot be the id of a run", hint=f"use a-z, 0-9 and -, at most {LONGEST_RUN} of them"
            )
        if policy is not None:
            policies.read(policy, file=policy_file)
        policy_of("", file="", allow=allow)
        named = tuple(dict.fromkeys(grants))
        refs = tuple(dict.fromkeys((*named, *(server.grant for server in servers))))
        granted = self._granted(refs, catalogue, environ, agent)
        for server in servers:
            _check_host(server, granted)
        if self._store.document(_KIND, run) is not None:
            raise UsageError(f"there is a run {run} already", hint="give it another id, or end that one first")
        folder = run_folder(paths, environ, run)
        for above in (paths.home, folder.parent.parent, folder.parent, folder):
            modes.own_folder(str(above))
        now = self._clock.now()
        hosts = [place.text for grant in granted for place in grant.places]
        key, certificate = run_authority.made(run, hosts, now)
        shown, environment, texts = self._sandboxed(refs, catalogue, environ)
        begun = Run(
            id=run,
            grants=refs,
            agent=agent,
            policy=policy or "",
            policy_file=policy_file,
            allow=tuple(allow),
            limits=limits or Limits(),
            folder=folder,
            created_at=now,
            placeholders=shown,
            authority_key=key,
            certificate=certificate,
            servers=tuple(servers),
            relayed_alone=tuple(ref for ref in refs if ref not in named),
        )
        self._store.put_document(Document(kind=_KIND, id=run, title=run, body=_written(begun), updated_at=now))
        return BegunRun(
            id=run,
            grants=refs,
            placeholders=shown,
            environment=environment,
            files=texts,
            certificate=certificate,
            folder=folder,
        )

    def end(self, run: str) -> None:
        """End it, with its placeholders and its authority; one that has ended already is no error. Raises: StoreError.

        The gateway closes what it has open and takes the socket away; where none runs, this does.
        """
        with suppress(RecordDamaged, UnknownRun):
            forget_socket(self.find(run).folder)
        self._store.delete_document(_ORDER, run)
        self._store.delete_document(_KIND, run)
        access_requests.forget(self._store, run)

    def keep_order(self, run: str, text: str) -> None:
        """Keep, until it is ended, what a second sandbox for this run is made with. Raises: StoreError."""
        document = Document(kind=_ORDER, id=run, title=run, body=text, updated_at=self._clock.now())
        self._store.put_document(document)

    def order(self, run: str) -> str | None:
        """Give what `keep_order` kept, None where the run has ended. Raises: StoreError, RecordDamaged."""
        document = self._store.document(_ORDER, run)
        return None if document is None else document.body

    def find(self, run: str) -> Run:
        """Give the live run of this id. Raises: UnknownRun, RecordDamaged, StoreError."""
        document = self._store.document(_KIND, run) if _ID.match(run) else None
        if document is None:
            raise UnknownRun(f"there is no live run {run[:LONGEST_RUN]!r}", hint="see `valetkey runs list`")
        return replace(_read(document), access=access_requests.load(self._store, run))

    def live(self) -> list[Run]:
        """Give every live run that can be read, the last begun first. Raises: StoreError."""
        return [run for _, run in self.each() if isinstance(run, Run)]

    def each(self) -> Iterator[tuple[str, Run | RecordDamaged]]:
        """Give every id and its run, in that order; in place of one that is damaged the error."""
        asked = access_requests.stored_runs(self._store)

        def read(document: Document) -> Run:
            access = access_requests.load(self._store, document.id) if document.id in asked else ()
            return replace(_read(document), access=access)

        return each(self._store, _KIND, read)

    def _granted(
        self, refs: Sequence[CredentialRef], catalogue: Catalogue, environ: Mapping[str, str], agent: str | None
    ) -> list[Grant]:
        found, missing = [], []
        for ref in refs:
            try:
                found.append(
                    grants_of.grantable(
                        ref, store=self._store, catalogue=catalogue, environ=environ, use="run", agent=agent
                    )
                )
            except NotLoggedIn:
                missing.append(ref)
                continue
            account = self._store.account(ref)
            if account is not None and state_of(account, self._clock.now()).health in _DEAD:
                missing.append(ref)
        if missing:
            commands = " && ".join(login_command(ref) for ref in missing)
            raise NotLoggedIn(
                f"the run cannot begin without a login for {', '.join(map(str, missing))}",
                provider=missing[0].provider if len(missing) == 1 else None,
                hint=f"run `{commands}`",
                accounts=tuple(map(str, missing)),
            )
        return found

    def _sandboxed(
        self, refs: Sequence[CredentialRef], catalogue: Catalogue, environ: Mapping[str, str]
    ) -> tuple[_Texts, _Texts, _Texts]:
        """Make placeholders, and fill in what the declarations want in a sandbox: variables, then files."""
        tag = placeholders.new_tag()
        shown: _Texts = {}
        environment: _Texts = {}
        files: _Texts = {}
        for ref in refs:
            method, parameters = self._method(ref, catalogue, environ)
            sandbox = Sandbox() if method is None else placeholders.sandbox_of(method)
            shown[ref] = {"": placeholders.made(sandbox.placeholder, tag)}
            environment[ref] = {}
            for variable, template in sandbox.environment.items():
                made = placeholders.made(sandbox.placeholder, tag)
                environment[ref][variable] = fill(template, {**parameters, "placeholder": made})
                if "{placeholder}" in template:
                    shown[ref][variable] = made
            if method is not None and method.endpoint is not None:
                token = shown[ref][ENDPOINT_TOKEN] = placeholders.made(sandbox.placeholder, tag)
                environment[ref] |= _of_endpoint(ref, method.endpoint, parameters, token)
            values = {**parameters, "placeholder": shown[ref][""]}
            files[ref] = {path: fill("\n".join(lines), values) for path, lines in sandbox.files.items()}
        return shown, environment, files

    def _method(
        self, ref: CredentialRef, catalogue: Catalogue, environ: Mapping[str, str]
    ) -> tuple[AuthMethod | None, Mapping[str, str]]:
        provider, record = catalogue.get(ref.provider), self._store.load(ref)
        method: AuthMethod | None
        if record is not None:
            method, parameters = provider.method(record.credential.method), record.credential.parameters
        else:  # its server wants no credential
            method = next((method for method in provider.auth if method.optional), None)
            parameters = {} if method is None else defaults_of(environ, method) or {}
        return method, {**parameters, "base_url": f"{ADDRESS}/{ref}"}


def _of_endpoint(ref: CredentialRef, id: str, parameters: Mapping[str, str], token: str) -> dict[str, str]:
    """Give the variables that an account's endpoint wants in a run. Raises: EndpointUnavailable."""
    endpoint = endpoint_for(id)
    endpoint.check(ref, parameters)
    values = {**parameters, "address": f"{ADDRESS}/{ref}", "token": token}
    return {variable: fill(template, values) for variable, template in endpoint.variables.items()}


def client_of(
    run: Run,
    *,
    store: Store,
    catalogue: Catalogue,
    environ: Mapping[str, str],
) -> Client:
    """Give a run as the decision sees it. Raises: as `grants.granted`."""
    granted = [
        grants_of.granted(ref, store=store, catalogue=catalogue, environ=environ, use="run", agent=run.agent)
        for ref in run.all_grants
    ]
    return Client(id=run.id, kind="run", grants=tuple(granted), agent=run.agent)


def forget_socket(folder: Path) -> None:
    """Take a run's socket away, and its folder."""
    with suppress(OSError):
        os.unlink(folder / serving.GATEWAY)
    with suppress(OSError):
        os.rmdir(folder)


def policy_of(text: str, *, file: str, allow: Sequence[str]) -> Policy:
    """Give the policy of a run: its file's, else all that is granted and no other host; then what it may go to beside.

    Raises: ConfigError, UsageError.
    """
    base = policies.read(text, file=file) if text else GRANTED_ALONE
    return replace(base, rules=(*base.rules, *map(_rule, allow)))


def _rule(host: str) -> Rule:
    """Give the rule that opens a host to a run. Raises: UsageError."""
    try:
        if "/" in host:
            raise WrongPattern("has a path", hint="write a host, or host:port; paths are for a policy")
        found = pattern.read(f"* {host}/**", host_needed=True)
    except WrongPattern as wrong:
        raise UsageError(f"--allow {host[:60]!r} {wrong.message}", hint=wrong.hint) from None
    name = re.sub(r":(\d+|\*)\Z", "", host).strip("[]").lower()
    if "*" not in name and is_near(name):
        raise UsageError(
            f"--allow {host[:60]!r} is on this machine or a private network, which no run may go to",
            hint="grant an account that is for this address: `valetkey providers add --help`",
        )
    return Rule(verdict="allow", pattern=found, place="--allow", name="allow")


def _check_host(server: Relayed, granted: Sequence[Grant]) -> None:
    """See that the account of a server is for its host. Raises: UsageError."""
    parts = urlsplit(server.url)
    found = normalise(scheme=parts.scheme, host=parts.hostname or "", port=parts.port, path=parts.path or "/")
    if isinstance(found, Malformed):
        raise UsageError(f"the url of the MCP server {server.name} {found.reason}", hint="correct it in config.toml")
    places = [place for grant in granted if grant.ref == server.grant for place in grant.places]
    if not any(place.matches(found, loosely=False) for place in places):
        raise UsageError(
            f"{server.grant} is not for {found.authority}, where the MCP server {server.name} is",
            hint="name an account whose provider declares that host: see `valetkey providers show PROVIDER`",
        )


# --- as it is kept ---------------------------------------------------------------------------


def _written(run: Run) -> str:
    return json.dumps(
        {
            "format": _FORMAT,
            "grants": [str(ref) for ref in run.grants],
            "agent": run.agent,
            "policy": run.policy,
            "policy_file": run.policy_file,
            "allow": list(run.allow),
            "limits": asdict(run.limits),
            "servers": [{**asdict(server), "grant": str(server.grant)} for server in run.servers],
            "relayed_alone": [str(ref) for ref in run.relayed_alone],
            "folder": str(run.folder),
            "created_at": run.created_at.isoformat(),
            "placeholders": {str(ref): dict(texts) for ref, texts in run.placeholders.items()},
            "authority_key": run.authority_key.reveal(),
            "certificate": run.certificate,
        }
    )


def _read(document: Document) -> Run:
    """Read what `_written` gave, and nothing else. Raises: RecordDamaged."""
    try:
        value = json.loads(document.body)
        if not isinstance(value, dict) or set(value) != _FIELDS or value["format"] != _FORMAT:
            raise ValueError
        created_at = time_in(value["created_at"])
        if created_at is None:
            raise ValueError
        return Run(
            id=document.id,
            grants=tuple(map(ref_in, texts_in(value["grants"]))),
            agent=None if value["agent"] is None else text_in(value["agent"]),
            policy=text_in(value["policy"]),
            policy_file=text_in(value["policy_file"]),
            allow=texts_in(value["allow"]),
            limits=limits_in(value["limits"]),
            servers=tuple(map(_server, value["servers"])),
            relayed_alone=tuple(map(ref_in, texts_in(value["relayed_alone"]))),
            folder=Path(text_in(value["folder"])),
            created_at=created_at,
            placeholders=_placeholders(value["placeholders"]),
            authority_key=Secret(text_in(value["authority_key"])),
            certificate=text_in(value["certificate"]),
        )
    except (ValueError, TypeError, KeyError, RecursionError, InvalidName):
        raise RecordDamaged(
            f"the run {document.id} cannot be read", hint="update Valetkey, or end it: `valetkey runs stop`"
        ) from None


def _server(value: object) -> Relayed:
    if not isinstance(value, dict) or value["transport"] not in ("http", "sse"):
        raise ValueError
    return Relayed(
        name=text_in(value["name"]),
        url=text_in(value["url"]),
        grant=ref_in(text_in(value["grant"])),
        transport=value["transport"],
        tools=None if value["tools"] is None else texts_in(value["tools"]),
    )


def _placeholders(value: object) -> dict[CredentialRef, dict[str, str]]:
    if not isinstance(value, dict) or not all(isinstance(texts, dict) for texts in value.values()):
        raise ValueError
    return {ref_in(ref): {name: text_in(text) for name, text in texts.items()} for ref, texts in value.items()}

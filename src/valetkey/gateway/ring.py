"""The ring of live valet keys and runs: what the engine asks at each request, read from the store, kept in memory."""

from __future__ import annotations

import functools
import hashlib
import hmac
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from valetkey.access import Use
from valetkey.audit.recorder import who_of
from valetkey.clock import Clock
from valetkey.credential import CredentialRef
from valetkey.errors import InvalidName, RecordDamaged, StoreError, ValetkeyError
from valetkey.gateway import grants
from valetkey.gateway import policy as policies
from valetkey.gateway.decide import Client, Grant
from valetkey.gateway.keys import Keys, ValetKey
from valetkey.gateway.limits import Meter
from valetkey.gateway.placeholders import Placeholder, by_mark, tag_of
from valetkey.gateway.policy import GRANTED_ALONE, Policy
from valetkey.gateway.run_authority import RunAuthority
from valetkey.gateway.runs import Run, Runs
from valetkey.providers import Catalogue
from valetkey.store import Store

__all__ = ["LiveKey", "Ring"]

_log = logging.getLogger(__name__)
# A store that could not be read is tried again this often, also where nobody changed it: a keychain gets unlocked, a
# disk gets room. Not more often, for a key source may be a command that takes its time or asks somebody.
_TRY_AGAIN_SECONDS = 5.0
_UNKNOWN = "there is no such valet key"
_ENDED = {"expired": "the valet key has expired", "revoked": "the valet key has been revoked"}
_Granting = Callable[[CredentialRef, Use, "str | None"], Grant]
# Many keys are made with one file.
_read_policy = functools.lru_cache(maxsize=256)(policies.read)


class LiveKey:
    """A key that counts, or a run, ready for use. Once `ended`, what still goes on with it has to be closed.

    A run has an `authority` of its own and `placeholders`; nothing that it could show makes it one.
    """

    __slots__ = (
        "authority",
        "client",
        "digest",
        "ended",
        "ends_at",
        "id",
        "key",
        "marker",
        "meter",
        "placeholders",
        "policy",
        "who",
    )

    def __init__(self, key: ValetKey | Run, client: Client, policy: Policy, meter: Meter, clock: Clock) -> None:
        """Take what was read. Raises: ValueError for the authority of a run."""
        self.key = key
        # As the trace and the audit name it: nobody can make a key that is called as a run is.
        self.id = _id_of(key)
        self.who = who_of(self.id)
        self.client = client
        self.policy = policy
        self.meter = meter
        self.ended = False
        self.authority: RunAuthority | None = None
        self.placeholders: Mapping[bytes, Placeholder] = {}
        self.digest = b""
        self.ends_at: datetime | None = None
        # What every token of this key begins with, and no other does: it goes to no provider.
        if isinstance(key, Run):
            self.authority = RunAuthority(key.authority_key, key.certificate, clock)
            self.placeholders = by_mark(key.all_placeholders)
            self.marker = tag_of(self.placeholders)
        else:
            self.digest = key.digest
            self.ends_at = key.expires_at
            self.marker = b"vk_%b_" % key.id.encode()

    def become(self, run: Run, client: Client, policy: Policy) -> None:
        """Take what a person has decided on the run's requests for access: it stays the run that it was, and all that
        goes on with it goes on.
        """
        self.key, self.client, self.policy = run, client, policy
        self.placeholders = by_mark(run.all_placeholders)

    def close(self) -> None:
        """Take it that it counts no more."""
        self.ended = True
        if self.authority is not None:
            self.authority.close()


class Ring:
    """The valet keys and the runs that count now. Empty before the first `refresh`.

    A key whose grants, provider or policy cannot be used is out of the ring, and no other with it; `problems` says why.
    While the store cannot be read (locked, damaged) nobody can know what was revoked: no key counts, and what goes on
    is closed; `failed` says why. Meters outlive both, so that no limit begins anew.
    """

    def __init__(
        self,
        store: Store,
        catalogue: Catalogue,
        clock: Clock,
        environ: Mapping[str, str],
        tokens_today: Callable[[str], int] = lambda _: 0,
    ) -> None:
        self._store = store
        self._catalogue = catalogue
        self._clock = clock
        self._environ = environ
        self._tokens_today = tokens_today
        self._keys = Keys(store, clock)
        self._all_runs = Runs(store, clock)
        self._watch = store.watch()
        # By the id in bytes, as it stands in a token.
        self._live: dict[bytes, LiveKey] = {}
        # Those that do not count, and why.
        self._out: dict[bytes, tuple[ValetKey, str]] = {}
        self._runs: dict[str, LiveKey] = {}
        # Those that have not ended and cannot be used, and why.
        self._runs_out: dict[str, str] = {}
        self._run_folders: dict[str, Path | None] = {}
        self._damaged: dict[str, str] = {}
        self._meters: dict[str, Meter] = {}
        self._seen = -1
        self._next_end: datetime | None = None
        self._try_again_at = 0.0
        self.failed: StoreError | None = None

    # --- asked at each request ---------------------------------------------------------------

    def resolve(self, token: bytes) -> LiveKey | None:
        """Give the key that counts for this token; None for one that is unknown, expired, revoked or disabled.

        An id is no secret, so it may be looked up; all the rest is compared at once, in constant time.
        """
        live = self._live.get(token[3:15])
        if live is None or not hmac.compare_digest(hashlib.sha256(token).digest(), live.digest):
            return None
        if live.ends_at is not None and self._clock.now() >= live.ends_at:
            return None
        return live

    def run(self, id: str) -> LiveKey | None:
        """Give the run of this id. Who asks is to know it by its socket: an id is no secret."""
        return self._runs.get(id)

    def why_no_run(self, id: str) -> str:
        """Say why `run` gave None."""
        return self._runs_out.get(id, "the run has ended")

    def why(self, token: bytes) -> str:
        """Say why `resolve` gave None, for the answer: something of a key only to whoever has the whole of it."""
        if self.failed is not None:
            return "the store cannot be read, so no valet key counts"
        key, reason = self._out.get(token[3:15], (None, _UNKNOWN))
        live = self._live.get(token[3:15])
        digest = None if key is None else key.digest
        if live is not None:
            digest, reason = live.digest, _ENDED["expired"]
        if digest is None or not hmac.compare_digest(hashlib.sha256(token).digest(), digest):
            return _UNKNOWN
        return reason

    def ended(self, token: bytes) -> str:
        """Give the id of a key that counts no more, to whoever has the whole of it; else ""."""
        key, _ = self._out.get(token[3:15], (None, ""))
        return key.id if key is not None and hmac.compare_digest(hashlib.sha256(token).digest(), key.digest) else ""

    def changed(self, *, thorough: bool = True) -> bool:
        """Say whether there is reason to `refresh`: a change to the store, by anybody, or a key that has expired.

        Without `thorough` a store that was replaced as a whole is noticed the next time.
        """
        if self.failed is not None and self._clock.monotonic() >= self._try_again_at:
            return True
        if self._next_end is not None and self._clock.now() >= self._next_end:
            return True
        try:
            return self._watch(thorough=thorough) != self._seen
        except StoreError:
            return self.failed is None

    # --- read anew ---------------------------------------------------------------------------

    def refresh(self) -> list[LiveKey]:
        """Read the store, and give what has ended or has other grants now: the streams of these have to close.

        One with other grants is in the ring anew. One that is as it was stays the same object.
        """
        before, runs_before = self._live, self._runs
        try:
            # First: what is changed while it is read is seen the next time.
            self._seen = self._watch()
            # Many clients share few accounts; each is opened once.
            grant = functools.cache(self._grant)
            self._damaged = {}
            meters: dict[str, Meter] = {}
            live, out = self._read(grant, meters)
            runs, runs_out = self._read_runs(grant, meters)
            self._live, self._out, self._runs, self._runs_out, self._meters = live, out, runs, runs_out, meters
            self.failed = None
        except StoreError as error:
            self._live, self._out, self._runs, self._runs_out = {}, {}, {}, {}
            self._fail(error)
        self._next_end = min((live.ends_at for live in self._live.values() if live.ends_at is not None), default=None)
        gone = [live for key_id, live in before.items() if self._live.get(key_id) is not live]
        gone += [live for run_id, live in runs_before.items() if self._runs.get(run_id) is not live]
        for ended in gone:
            ended.close()
        return gone

    def live(self) -> list[LiveKey]:
        """Give all that count, keys and runs: what they are granted is renewed ahead of need."""
        return [*self._live.values(), *self._runs.values()]

    def run_ids(self) -> set[str]:
        """Give the ids of the runs that count."""
        return set(self._runs)

    def run_folders(self) -> Mapping[str, Path | None]:
        """Give, by id, where the socket of each run is that has not ended; None where that cannot be read."""
        return self._run_folders

    def problems(self) -> dict[str, str]:
        """Give, by id, why keys are disabled that have neither expired nor been revoked."""
        now = self._clock.now()
        return self._damaged | {key.id: reason for key, reason in self._out.values() if key.state(now) == "live"}

    def _read(
        self, grant: _Granting, meters: dict[str, Meter]
    ) -> tuple[dict[bytes, LiveKey], dict[bytes, tuple[ValetKey, str]]]:
        now = self._clock.now()
        live: dict[bytes, LiveKey] = {}
        out: dict[bytes, tuple[ValetKey, str]] = {}
        for key_id, key in self._keys.each():
            if isinstance(key, RecordDamaged):
                self._damaged[key_id] = key.message
                continue
            state = key.state(now)
            if state != "live":
                out[key_id.encode()] = key, _ENDED[state]
                continue
            found = self._built(key, self._live.get(key_id.encode()), grant, meters)
            if isinstance(found, LiveKey):
                live[key_id.encode()] = found
            else:
                out[key_id.encode()] = key, found
        return live, out

    def _read_runs(self, grant: _Granting, meters: dict[str, Meter]) -> tuple[dict[str, LiveKey], dict[str, str]]:
        live: dict[str, LiveKey] = {}
        out: dict[str, str] = {}
        folders: dict[str, Path | None] = {}
        for run_id, run in self._all_runs.each():
            if isinstance(run, RecordDamaged):
                self._damaged[run_id] = out[run_id] = run.message
                folders[run_id] = None
                continue
            folders[run_id] = run.folder
            found = self._built(run, self._runs.get(run_id), grant, meters)
            if isinstance(found, LiveKey):
                live[run_id] = found
            else:
                self._damaged[run_id] = out[run_id] = found
        self._run_folders = folders
        return live, out

    def _built(
        self, key: ValetKey | Run, old: LiveKey | None, grant: _Granting, meters: dict[str, Meter]
    ) -> LiveKey | str:
        """Give it ready for use, the same object where nothing changed; or why it cannot be used."""
        is_run = isinstance(key, Run)
        meter = self._meters.get(_id_of(key))
        if meter is not None:
            meters[_id_of(key)] = meter
        try:
            agent = key.agent if isinstance(key, Run) else None
            refs = key.all_grants if isinstance(key, Run) else key.grants
            grants = tuple(grant(ref, "run" if is_run else "gateway", agent) for ref in refs)
            client = Client(id=key.id, kind="run" if is_run else "key", grants=grants, agent=agent)
            if old is not None and old.key == key and old.client == client:
                self._set(old.meter)
                return old
            if old is not None and isinstance(key, Run) and _goes_on(old, key, client):
                old.become(key, client, _policy(key))
                self._set(old.meter)
                return old
            return LiveKey(key, client, _policy(key), self._meter(key, meters), self._clock)
        except ValetkeyError as error:
            if isinstance(error, StoreError) and not isinstance(error, RecordDamaged | InvalidName):
                raise  # the store as a whole
            return f"{error.message}; {error.hint}"
        except Exception as error:
            # Not thought of, and so in one key. It must not keep the others from being revoked.
            _log.exception("the %s %s cannot be used", "run" if is_run else "valet key", key.id)
            return f"something went wrong inside Valetkey: {type(error).__name__}"

    def _grant(self, ref: CredentialRef, use: Use, agent: str | None) -> Grant:
        return grants.granted(
            ref, store=self._store, catalogue=self._catalogue, environ=self._environ, use=use, agent=agent
        )

    def _meter(self, key: ValetKey | Run, meters: dict[str, Meter]) -> Meter:
        meter = meters.get(_id_of(key))
        if meter is None:
            counted = key.limits.tokens_per_day is not None
            meter = Meter(
                key.limits,
                now=self._clock.monotonic(),
                unix_offset=self._unix_offset(),
                tokens_today=self._tokens_today(_id_of(key)) if counted else 0,
            )
            meters[_id_of(key)] = meter
        self._set(meter)
        return meter

    def _set(self, meter: Meter) -> None:
        meter.unix_offset = self._unix_offset()

    def _unix_offset(self) -> float:
        return self._clock.now().timestamp() - self._clock.monotonic()

    def _fail(self, error: StoreError) -> None:
        if self.failed is None:
            _log.error("no valet key counts: %s; %s", error.message, error.hint)
        self.failed = error
        self._try_again_at = self._clock.monotonic() + _TRY_AGAIN_SECONDS


def _policy(key: ValetKey | Run) -> Policy:
    if isinstance(key, Run):
        return key.whole_policy
    return _read_policy(key.policy, file=key.policy_file) if key.policy else GRANTED_ALONE


def _goes_on(old: LiveKey, run: Run, client: Client) -> bool:
    """Say whether nothing but its requests for access has changed, and no account was taken from it."""
    same = isinstance(old.key, Run) and replace(run, access=()) == replace(old.key, access=())
    return same and client.grants[: len(old.client.grants)] == old.client.grants


def _id_of(key: ValetKey | Run) -> str:
    return f"run:{key.id}" if isinstance(key, Run) else key.id

"""The ring of live valet keys: what the engine asks at each request, built from the store and kept in memory."""

from __future__ import annotations

import functools
import hashlib
import hmac
import logging
from collections.abc import Callable, Mapping
from datetime import datetime

from valetkey.clock import Clock
from valetkey.credential import CredentialRef
from valetkey.errors import InvalidName, RecordDamaged, StoreError, ValetkeyError
from valetkey.gateway import grants
from valetkey.gateway import policy as policies
from valetkey.gateway.decide import Client, Grant
from valetkey.gateway.keys import Keys, ValetKey
from valetkey.gateway.limits import Meter
from valetkey.gateway.policy import GRANTED_ALONE, Policy
from valetkey.providers import Catalogue
from valetkey.store import Store

__all__ = ["LiveKey", "Ring"]

_log = logging.getLogger(__name__)
# A store that could not be read is tried again this often, also where nobody changed it: a keychain gets unlocked, a
# disk gets room. Not more often, for a key source may be a command that takes its time or asks somebody.
_TRY_AGAIN_SECONDS = 5.0
_UNKNOWN = "there is no such valet key"
_ENDED = {"expired": "the valet key has expired", "revoked": "the valet key has been revoked"}
# Many keys are made with one file.
_read_policy = functools.lru_cache(maxsize=256)(policies.read)


class LiveKey:
    """A key that counts, ready for use. Once `ended`, what still goes on with it has to be closed."""

    __slots__ = ("client", "digest", "ended", "ends_at", "key", "marker", "meter", "policy")

    def __init__(self, key: ValetKey, client: Client, policy: Policy, meter: Meter) -> None:
        self.key = key
        self.client = client
        self.policy = policy
        self.meter = meter
        self.ended = False
        self.digest = key.digest
        # What every token of this key begins with, and no other does.
        self.marker = b"vk_%b_" % key.id.encode()
        self.ends_at = key.expires_at


class Ring:
    """The valet keys that count now. Empty before the first `refresh`.

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
        self._watch = store.watch()
        # By the id in bytes, as it stands in a token.
        self._live: dict[bytes, LiveKey] = {}
        # Those that do not count, and why.
        self._out: dict[bytes, tuple[ValetKey, str]] = {}
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

    def why(self, token: bytes) -> str:
        """Say why `resolve` gave None, for the answer: something of a key only to whoever has the whole of it."""
        if self.failed is not None:
            return "the store cannot be read, so no valet key counts"
        key, reason = self._out.get(token[3:15], (None, _UNKNOWN))
        live = self._live.get(token[3:15])
        if live is not None:
            key, reason = live.key, _ENDED["expired"]
        if key is None or not hmac.compare_digest(hashlib.sha256(token).digest(), key.digest):
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
        """Read the store, and give the keys that have ended or have other grants now: their streams have to close.

        One with other grants is in the ring anew. One that is as it was stays the same object.
        """
        before = self._live
        try:
            # First: what is changed while it is read is seen the next time.
            self._seen = self._watch()
            self._live, self._out = self._read()
            self.failed = None
        except StoreError as error:
            self._live, self._out = {}, {}
            self._fail(error)
        self._next_end = min((live.ends_at for live in self._live.values() if live.ends_at is not None), default=None)
        gone = [live for key_id, live in before.items() if self._live.get(key_id) is not live]
        for live in gone:
            live.ended = True
        return gone

    def live(self) -> list[LiveKey]:
        """Give all that count: what they are granted is renewed ahead of need."""
        return list(self._live.values())

    def problems(self) -> dict[str, str]:
        """Give, by id, why keys are disabled that have neither expired nor been revoked."""
        now = self._clock.now()
        return self._damaged | {key.id: reason for key, reason in self._out.values() if key.state(now) == "live"}

    def _read(self) -> tuple[dict[bytes, LiveKey], dict[bytes, tuple[ValetKey, str]]]:
        now = self._clock.now()
        live: dict[bytes, LiveKey] = {}
        out: dict[bytes, tuple[ValetKey, str]] = {}
        # Many keys share few accounts; each is opened once.
        grant = functools.cache(self._grant)
        meters: dict[str, Meter] = {}
        self._damaged = {}
        for key_id, key in self._keys.each():
            if isinstance(key, RecordDamaged):
                self._damaged[key_id] = key.message
                continue
            state = key.state(now)
            if state != "live":
                out[key_id.encode()] = key, _ENDED[state]
                continue
            found = self._built(key, grant)
            if isinstance(found, LiveKey):
                live[key_id.encode()] = found
            else:
                out[key_id.encode()] = key, found
            if key_id in self._meters:
                meters[key_id] = self._meters[key_id]
        self._meters = meters
        return live, out

    def _built(self, key: ValetKey, grant: Callable[[CredentialRef], Grant]) -> LiveKey | str:
        """Give the key ready for use, the same object where nothing changed; or why it cannot be used."""
        try:
            client = Client(id=key.id, kind="key", grants=tuple(grant(ref) for ref in key.grants))
            old = self._live.get(key.id.encode())
            if old is not None and old.key == key and old.client == client:
                self._set(old.meter)
                return old
            policy = _read_policy(key.policy, file=key.policy_file) if key.policy else GRANTED_ALONE
            return LiveKey(key, client, policy, self._meter(key))
        except ValetkeyError as error:
            if isinstance(error, StoreError) and not isinstance(error, RecordDamaged | InvalidName):
                raise  # the store as a whole
            return f"{error.message}; {error.hint}"
        except Exception as error:
            # Not thought of, and so in one key. It must not keep the others from being revoked.
            _log.exception("the valet key %s cannot be used", key.id)
            return f"something went wrong inside Valetkey: {type(error).__name__}"

    def _grant(self, ref: CredentialRef) -> Grant:
        return grants.granted(ref, store=self._store, catalogue=self._catalogue, environ=self._environ)

    def _meter(self, key: ValetKey) -> Meter:
        meter = self._meters.get(key.id)
        if meter is None:
            counted = key.limits.tokens_per_day is not None
            meter = Meter(
                key.limits,
                now=self._clock.monotonic(),
                unix_offset=self._unix_offset(),
                tokens_today=self._tokens_today(key.id) if counted else 0,
            )
            self._meters[key.id] = meter
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

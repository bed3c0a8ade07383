"""One request and its answer: who asks, what is decided, the credential on the way out, the answer on the way back.

The ordinary request is served without a task: parsed, decided, written anew and sent in one go. Only what has to wait
(a connection, a renewal, a person) gets one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from valetkey.credential import secrets_of
from valetkey.errors import AuditError, NeedsLogin, NotLoggedIn, StoreError, UnclearAnswer, ValetkeyError
from valetkey.gateway import admission, answers, incoming, outgoing, presented
from valetkey.gateway.answers import Answer
from valetkey.gateway.body import MAX_HELD_BYTES, Down, Up, sampled
from valetkey.gateway.connect import open_tunnel
from valetkey.gateway.decide import Forward, Hold, Refuse
from valetkey.gateway.entry import row_of
from valetkey.gateway.message import (
    Header,
    Problem,
    ReadHead,
    ReadResponse,
    read_length,
    read_request,
    read_response,
    status_line,
    write_headers,
)
from valetkey.gateway.plan import disguises
from valetkey.gateway.relay import Relay
from valetkey.gateway.repeat import Repeat

if TYPE_CHECKING:
    from valetkey.credential import CredentialRef
    from valetkey.dialect import Usage
    from valetkey.gateway.client import ClientConnection
    from valetkey.gateway.credentials import Placement, Ready
    from valetkey.gateway.plan import Plan
    from valetkey.gateway.ring import LiveKey
    from valetkey.gateway.scrub import Needles
    from valetkey.gateway.upstream import UpstreamConnection
    from valetkey.gateway.usage import UsageReader

__all__ = ["MAX_WAITING_BYTES", "Exchange"]

log = logging.getLogger(__name__)

# A 401 is kept back while the login is renewed; a longer one is passed on.
_MAX_KEPT_ANSWER = 64 * 1024
# A body, or bytes behind an upgrade, that are not wanted yet stop the reading at this.
MAX_WAITING_BYTES = 64 * 1024
# A model answered and told no counts (a stream without `include_usage`): tokens are longer in texts, and JSON is more.
BYTES_A_TOKEN = 4
# RFC 9110 section 9.2.2: what may be sent again when a kept connection turns out to be dead.
_IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"))
# A client that has closed its half may be gone altogether: so long it is waited for (seconds).
_HALF_CLOSED_SECONDS = 5.0


class Exchange:
    """A request of a client, from its head to the end of its answer."""

    # Where they begin; most requests change few of them.
    started = False
    attached = False
    admitted = False
    # The parser has stopped: what follows is another protocol, and `leftover` what came of it too early.
    upgrading = False
    leftover = b""
    problem: Answer | None = None
    head: ReadHead | None = None
    live: LiveKey | None = None
    plan: Plan | None = None
    upstream: UpstreamConnection | None = None
    down: Down | None = None
    _length = 0
    # The head as it came, where all of the request came at once.
    raw_head = b""
    # The valet key that the client showed, or the placeholder; a run may show none. The id of a key that has ended.
    token = b""
    ended_client = ""
    # The account that the placeholder of a run names.
    chosen: CredentialRef | None = None
    foreign = False
    _ready: Ready | None = None
    # The credential that goes into the body, once all of that is here.
    _waiting: Ready | None = None
    _repeat: Repeat | None = None
    _task: asyncio.Task[None] | None = None
    _kept: tuple[int, ReadResponse] | None = None
    _kept_body: bytearray | None = None
    _replaced: Answer | None = None
    relay: Relay | None = None
    reader: UsageReader | None = None
    sent_body: bytearray | None = None
    begun = 0.0
    _first_byte: float | None = None
    status = 0
    _outcome = "ok"
    _finished = False
    _renewed = False
    _retried = False

    def __init__(
        self,
        client: ClientConnection,
        method: bytes,
        url: bytes,
        version: str,
        keep_alive: bool,
        headers: list[Header],
        lengths: list[bytes],
    ) -> None:
        self.client = client
        self.gateway = client.gateway
        self.method = method
        self.is_head = method == b"HEAD"
        self.url = url
        self.version = version
        self.keep_alive = keep_alive and version == "1.1"
        self.headers = headers
        self.up = Up()
        self._lengths = lengths

    # --- what the client sends -------------------------------------------------------------------

    @property
    def body_complete(self) -> bool:
        """Whether all of the request has come."""
        return self.up.complete

    @body_complete.setter
    def body_complete(self, value: bool) -> None:
        self.up.complete = value

    @property
    def waiting_up(self) -> bool:
        """Whether something of the request can be sent on."""
        if self._waiting is not None:
            return self.up.complete
        return self.attached and (bool(self.up.waiting) or (self.up.complete and not self.up.sent_end))

    @property
    def room_bytes(self) -> int:
        """How much of the body may wait before the client is stopped."""
        return MAX_HELD_BYTES + 1 if self._waiting is not None else MAX_WAITING_BYTES

    @property
    def waiting_bytes(self) -> int:
        """How much of the body waits for its connection."""
        return self.up.waiting_bytes

    @property
    def request_sent(self) -> bool:
        """Whether the provider has all of the request."""
        return self.up.sent_end

    def body(self, data: bytes) -> None:
        """Take a piece of the body."""
        self.up.take(data)
        if self.gateway.settings.keep_bodies:
            self.sent_body = sampled(self.sent_body, data)
        limit = self.gateway.settings.max_body_bytes
        if self._waiting is not None:
            limit = min(limit or MAX_HELD_BYTES, MAX_HELD_BYTES)
        if limit and self.up.received > limit and not self._finished:
            told = answers.failed(413, "body_too_large", f"the body is longer than {limit} bytes", "send less")
            if self.started:
                self.cut_off(told)
            else:
                self.problem = told

    def upgrades(self, leftover: bytes) -> None:
        """Take it that what follows on the connection is no HTTP any more, whether or not it is wanted."""
        self.upgrading = True
        self.keep_alive = False
        self.leftover = leftover

    def body_end(self) -> None:
        """Take the end of the request."""
        self.up.complete = True

    def flush_up(self) -> None:
        """Send on what has come."""
        if self._waiting is not None:
            ready, self._waiting = self._waiting, None
            self._send(ready)
        elif self.upstream is not None:
            data = self.up.drain()
            if data:
                self.upstream.write(data)
            self._alive()

    def _alive(self) -> None:
        self._wait(self.gateway.settings.stream_seconds)

    def _wait(self, seconds: float) -> None:
        """Give it so long from now on. A client that has closed its half is mostly gone altogether."""
        if self.client.half_closed:
            seconds = min(seconds, _HALF_CLOSED_SECONDS)
        self.client.deadline = self.gateway.tick + seconds

    # --- who, whether, where ---------------------------------------------------------------------

    def start(self) -> None:
        """Decide on the request, and send it on or answer it."""
        self._begin()
        try:
            self._start()
        except Exception as error:
            self._failed(error)

    def _begin(self) -> None:
        gateway = self.gateway
        self.started = True
        self.begun = gateway.now()
        self._wait(gateway.settings.response_seconds)
        gateway.begun()

    def _failed(self, error: Exception) -> None:
        if isinstance(error, ValetkeyError):
            self.answer(answers.of_error(error))
        else:
            self.crashed(error)

    def _start(self) -> None:
        if self.problem is not None:
            self.answer(self.problem, close=True)
            return
        gateway = self.gateway
        gateway.look()
        length = read_length(self._lengths)
        if isinstance(length, Problem):
            self._malformed(length)
            return
        self._length = length
        head = read_request(self.method, self.version, self.headers, has_body=length > 0)
        if isinstance(head, Problem):
            self._malformed(head)
            return
        if self.upgrading and not head.websocket and self.method != b"CONNECT":
            self._malformed(Problem(status=400, reason="asks for an upgrade that the gateway does not see"))
            return
        self.head = head
        self.up.chunked = head.chunked
        live = self._who(head)
        if live is None:
            return
        self.live = live
        if self.method == b"CONNECT" and (length or head.chunked or self.leftover):
            told = Problem(status=400, reason="sends something before its tunnel is open")
            self._malformed(told)
            return
        self.plan = plan = self._planned(head, live)
        if isinstance(plan.decision, Refuse):
            self.answer(answers.refused(plan.decision, run=self.client.run))
            return
        if self.foreign and plan.ref is not None and self.method != b"CONNECT":
            why = f"the request shows a credential of its own, and {plan.host} gets that of {plan.ref} alone"
            self.answer(answers.foreign_credential(live.key.id, why))
            return
        if self.raw_head and isinstance(plan.decision, Forward) and plan.ref is not None and not head.disguised:
            self._repeat = self.client.last = Repeat.of(self, head, live, plan)
        self._admit(live, plan)

    def start_again(self, repeat: Repeat, length: int) -> None:
        """Do what was decided on the same head before."""
        self._begin()
        self._repeat, self.head, self.live, self.plan = repeat, repeat.head, repeat.live, repeat.plan
        self.token, self._length = repeat.token, length
        try:
            self._admit(repeat.live, repeat.plan)
        except Exception as error:
            self._failed(error)

    def _malformed(self, problem: Problem) -> None:
        told = answers.failed(problem.status, "malformed", f"the request {problem.reason}", "send plain HTTP/1.1")
        self.answer(told, close=True)

    def _planned(self, head: ReadHead, live: LiveKey) -> Plan:
        tunnel = self.client.tunnel
        names = frozenset[str]()
        if head.disguised:
            names = disguises(frozenset(name.decode("latin-1") for name, _ in head.lines))
        host = None if tunnel is None and self.url.startswith(b"/") else head.host
        return self.gateway.planner.plan(
            live, self.method, self.url, host=host, tunnel=tunnel, header_names=names, grant=self.chosen
        )

    def _admit(self, live: LiveKey, plan: Plan) -> None:
        """Count it against the key's limits, and go on."""
        if plan.counted:
            wait = live.meter.admit(self.begun)
            if wait is not None:
                self.answer(answers.too_many(wait, run=self.client.run))
                return
            self.admitted = True
        if isinstance(plan.decision, Hold):
            self._spawn(self._held, plan.decision)
        else:
            self._go()

    def _who(self, head: ReadHead) -> LiveKey | None:
        """Find the run of its socket, or the key that the client shows; answers where there is none that counts."""
        run, tunnel, ring = self.client.run, self.client.tunnel, self.gateway.ring
        if run is None:
            found = admission.identify(head, self.url, tunnel=tunnel, ring=ring)
        else:
            found = admission.identify_run(head, self.url, run=run, tunnel=tunnel, ring=ring)
        if isinstance(found, Answer):
            self.ended_client = found.client
            self.answer(found)
            return None
        self.token, self.url, self.chosen, self.foreign = found.token, found.url, found.grant, found.foreign
        self.client.known = True
        return found.live

    async def _held(self, hold: Hold) -> None:
        """Wait until a person has decided."""
        live = self.live
        if live is None:
            return
        approvals = self.gateway.approvals
        full = approvals.no_room(live.client)
        if full is not None:
            # Nobody has denied it, and it is no limit of the key: the client may come back.
            self.answer(answers.failed(429, "approvals_full", full, "decide on them first: `valetkey approvals list`"))
            return
        verdict = await approvals.wait(hold, client=live.client, name=live.key.name)
        if live.ended:
            self.answer(admission.ended(live), close=True)
        elif verdict == "approved":
            self._go()
        else:
            how = "was denied by a person" if verdict == "denied" else "was decided on by nobody in time"
            told = answers.failed(
                403,
                f"approval_{verdict.replace('-', '_')}",
                f"the request {how}",
                "see `valetkey approvals list --settled`",
            )
            self.answer(told)

    # --- on the way out --------------------------------------------------------------------------

    def _go(self) -> None:
        plan = self.plan
        if plan is None or plan.forward is None:
            return
        if plan.forward.how in ("intercept", "tunnel"):
            self._spawn(open_tunnel, self, plan)
        elif plan.endpoint is not None:
            self._spawn(self._serve_here, plan)
        elif plan.ref is None:
            self._send(None)
        else:
            repeat = self._repeat
            ready = None if repeat is None else repeat.ready
            if ready is None or self.begun >= ready.until:
                ready = self.gateway.credentials.ready(plan.ref)
            if ready is None:
                self._spawn(self._fetch_and_send, plan)
            else:
                self._send(ready)

    async def _serve_here(self, plan: Plan) -> None:
        """Answer a run out of its account's endpoint; what that gives is a use of the account."""
        live, head = self.live, self.head
        if live is None or head is None:
            return
        answer = await self.gateway.endpoints.answer(plan, live, by_socket=self.client.run is not None, head=head)
        if live.ended:
            self.answer(admission.ended(live), close=True)
        elif answer.status != 200 or self._noted(live, plan):
            self.answer(answer)

    async def _fetch_and_send(self, plan: Plan) -> None:
        if plan.ref is not None and self.live is not None:
            self._send(await self.gateway.credentials.fetch(plan.ref, self.live.client))

    def _send(self, ready: Ready | None, *, fresh_connection: bool = False) -> None:
        """Write the request anew, with the credential, and send it."""
        plan, head, live = self.plan, self.head, self.live
        if plan is None or head is None or live is None or self._finished:
            return
        self._ready = ready
        placement = None if ready is None else ready.placement(plan.origin)
        if placement is not None and placement.in_body is not None and not self._put_into_body(live, placement.in_body):
            self._waiting = ready
            self._go_on_reading()
            return
        if self._finished:
            return
        repeat = self._repeat
        if repeat is not None and repeat.ready is ready:
            out = repeat.out
        else:
            out = outgoing.head_for(self.method, plan, head, placement, self.token)
            told = self._untaken(live, placement, out)
            if told is not None:
                self.answer(told)
                return
            if repeat is not None:
                repeat.ready, repeat.out = ready, out
        if ready is not None and not self._noted(live, plan):
            return
        sent = out + outgoing.framing(head, self.method, length=self._length, chunked=self.up.chunked)
        upstream = None if fresh_connection else self.gateway.pool.take(plan.pool_key)
        if upstream is None:
            self._spawn(self._dial_and_send, plan, sent)
        else:
            self._attach(upstream, sent)

    def _untaken(self, live: LiveKey, placement: Placement | None, out: bytes) -> Answer | None:
        """Give the answer where the head would carry what stands for a credential, or one that is not ours."""
        run = self.client.run
        if run is None:
            taken = out.find(live.marker) < 0 and presented.within(out) is None
            return None if taken else answers.key_in_request()
        if out.find(live.marker) >= 0:
            return answers.placeholder_in_request(run)
        if placement is not None and admission.brings_its_own(self.url, placement, self.token):
            return answers.foreign_credential(run, "the address holds a credential that is not the run's")
        return None

    def _noted(self, live: LiveKey, plan: Plan) -> bool:
        """Put the use into the audit, before its first byte goes out; answers, and gives False, where that fails."""
        audit = self.gateway.audit
        if audit is not None:
            try:
                audit.note(live.who, plan.account)
            except (AuditError, StoreError) as error:
                self.answer(answers.of_error(error))
                return False
        return True

    def _put_into_body(self, live: LiveKey, value: bytes) -> bool:
        """Put the credential where the client wrote its key in the body; False as long as that is not here whole."""
        if not self.up.complete:
            return False
        token = self.token
        if self.client.run is not None and self.plan is not None and self.plan.ref is not None:
            token = admission.in_body(live, self.plan.ref, b"".join(self.up.waiting))
            if not token:
                return True  # it shows none there, and what it shows is no key of ours
        body = outgoing.with_key(self.up.waiting, token, value)
        if body is None:
            self.answer(answers.key_in_request())
            return True
        self._length = self.up.become(body)
        return True

    async def _dial_and_send(self, plan: Plan, head: bytes) -> None:
        gateway = self.gateway
        upstream = await gateway.dial(plan)
        if self._finished:
            gateway.pool.put(upstream)
            return
        self._attach(upstream, head)

    def _attach(self, upstream: UpstreamConnection, head: bytes) -> None:
        self.upstream = upstream
        self.attached = True
        self._wait(self.gateway.settings.response_seconds)
        upstream.begin(self, head + self.up.drain())
        self._go_on_reading()

    def _go_on_reading(self) -> None:
        if len(self.client.queue) == 1:
            self.client.resume("queue")

    # --- on the way back -------------------------------------------------------------------------

    def interim(self, status: int, headers: list[Header]) -> None:
        """Pass on a 1xx (RFC 9110 section 15.2)."""
        read = read_response(headers)
        if self.version == "1.1" and self.down is None and not self._renewed and read is not None:
            self.client.write(self._clean(b"%b%b\r\n" % (status_line(status), write_headers(read.lines))))

    def _clean(self, head: bytes) -> bytes:
        return head if self._ready is None else self._ready.needles.clean(head)

    def response_head(self, status: int, headers: list[Header]) -> None:
        """Take the head of the answer."""
        read = read_response(headers)
        if read is None:
            if self.upstream is not None:
                self.upstream.broken = "the length of its answer is unclear"
            return
        if self.upstream is not None:
            self.upstream.unframed = read.length is None and not read.chunked
        if status == 401 and self._may_renew(read):
            self._kept = status, read
            return
        if self.plan is not None and self.plan.rewrites:
            self._replaced = self._rewritten(status, self.plan)
            if self._replaced is not None:
                return
        self._answer_with(status, read)

    def _answer_with(self, status: int, read: ReadResponse) -> None:
        """Begin the answer to the client."""
        self.up.drop()
        bodyless = self.is_head or status in (204, 304)
        if not self.up.complete or self.gateway.draining:
            # An answer before the end of the request is mostly a refusal: nobody knows whether the rest comes.
            self.keep_alive = False
        if self.plan is not None and status == 200 and not bodyless:
            self.reader = self.plan.reader(read.content_type)
        self.down = incoming.begun(
            status,
            read,
            bodyless=bodyless,
            chunks=self.version == "1.1",
            close=not self.keep_alive,
            needles=None if self._ready is None else self._ready.scrubs,
            reader=self.reader,
            keep=self.gateway.settings.keep_bodies,
        )
        if self.down is None:
            self._refuse_answer("its answer is compressed in a way that cannot be looked into")
            return
        self.status = status
        self._first_byte = self.gateway.now() - self.begun

    def response_body(self, data: bytes) -> None:
        """Take a piece of the answer's body."""
        if self._finished:
            return
        if self._kept is not None:
            if self._kept_body is None:
                self._kept_body = bytearray()
            self._kept_body += data
            if len(self._kept_body) > _MAX_KEPT_ANSWER:
                self._pass_on_kept()
            return
        if self.down is not None:
            try:
                self.down.feed(data)
            except UnclearAnswer:
                self._refuse_answer("its answer cannot be decoded")

    def flush_down(self) -> None:
        """Send on what has come of the answer."""
        if self.down is not None and not self._finished:
            data = self.down.take()
            if data:
                self.client.write(data)
                self._alive()

    def response_done(self, trailers: list[Header]) -> None:
        """Take the end of the answer."""
        self.upstream = None
        if self._finished:
            return
        if self._kept is not None:
            self._spawn(self._renew)
            return
        if self._replaced is not None:
            self.answer(self._replaced)
            return
        if self.down is not None:
            try:
                self.down.finish(trailers)
            except UnclearAnswer:
                self._refuse_answer("its answer cannot be decoded")
                return
            self.flush_down()
        # What is not told a length ends with the connection.
        ends = self.down is not None and self.version == "1.0"
        self._finish(keep_alive=self.keep_alive and self.up.complete and not ends)

    def _refuse_answer(self, reason: str) -> None:
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.abort()
        self.upstream_failed(reason)

    # --- a second try ----------------------------------------------------------------------------

    def _may_renew(self, read: ReadResponse) -> bool:
        """Say whether a 401 is worth a renewal: the credential was ours, and the request can be sent again."""
        ready = self._ready
        return (
            not self._renewed
            and ready is not None
            and ready.access.credential is not None
            and self.up.can_repeat
            and (self.is_head or read.length is None or read.length <= _MAX_KEPT_ANSWER)
        )

    async def _renew(self) -> None:
        """Renew what the provider has just refused, and send the request once more; else pass its answer on."""
        ready, plan, live = self._ready, self.plan, self.live
        if ready is None or plan is None or plan.ref is None or live is None:
            return
        self._renewed = True
        old = ready.access.credential
        try:
            fresh = await self.gateway.credentials.fetch(plan.ref, live.client, rejected=old)
        except (NeedsLogin, NotLoggedIn) as error:
            self._kept = None
            self.answer(answers.of_error(error))
            return
        except ValetkeyError as error:
            log.info("%s was refused by its provider, and %s", plan.ref, error.message)
            fresh = ready
        if self._finished or fresh is ready or _same_secrets(fresh, ready):
            self._pass_on_kept()
            self.response_done([])
            return
        self._kept, self._kept_body = None, None
        self.up.rewind()
        self._send(fresh)

    def _pass_on_kept(self) -> None:
        if self._kept is None:
            return
        (status, read), self._kept = self._kept, None
        body, self._kept_body = self._kept_body, None
        self._answer_with(status, read)
        if body:
            self.response_body(bytes(body))

    def _rewritten(self, status: int, plan: Plan) -> Answer | None:
        for rewrite in plan.rewrites:
            if rewrite.when_status == status and rewrite.path == plan.path:
                made = Answer(rewrite.status, "rewritten", {})
                made.body = rewrite.body.encode()
                return made
        return None

    def upstream_failed(self, reason: str) -> None:
        """End it: the provider's answer cannot be used."""
        provider = None if self.plan is None or self.plan.ref is None else self.plan.ref.provider
        told = answers.failed(
            502,
            "upstream_failed",
            f"{self.plan.host if self.plan else 'the provider'} failed: {reason}",
            "try again; the provider's status page may say more",
            provider=provider,
        )
        self.answer(told)

    def upstream_lost(self, upstream: UpstreamConnection, *, clean: bool) -> None:
        """Take the end of the provider's connection: of the answer, of a tunnel, or too early."""
        if self._finished or self.upstream is not upstream:
            return
        self.upstream = None
        if self.client.relaying:
            if self.relay is not None:
                self.relay.finish()
            self._finish(keep_alive=False)
            return
        if (self.down is not None or self._kept is not None or self._replaced is not None) and (
            clean and upstream.ends_with_connection
        ):
            self.response_done([])
            return
        repeatable = self.method in _IDEMPOTENT or any(
            name == b"idempotency-key" for name, _ in (self.head.lines if self.head is not None else ())
        )
        stale = upstream.served > 1 and not upstream.answering
        if stale and repeatable and self.up.can_repeat and not self._retried and self.down is None:
            self._retried = True
            self.up.rewind()
            self._send(self._ready, fresh_connection=True)
            return
        self.upstream_failed("it closed the connection before its answer was whole")

    # --- relays ----------------------------------------------------------------------------------

    def upgrade_accepted(self, headers: list[Header]) -> bool:
        """Pass on a 101 and become a relay; False where the client asked for no WebSocket."""
        read = read_response(headers)
        if self.head is None or not self.head.websocket or read is None:
            return False
        self.client.write(
            self._clean(
                b"%b%bconnection: Upgrade\r\nupgrade: websocket\r\n\r\n" % (status_line(101), write_headers(read.lines))
            )
        )
        self.status = 101
        self._first_byte = self.gateway.now() - self.begun
        self.begin_relay(None if self._ready is None else self._ready.needles)
        return True

    def begin_relay(self, needles: Needles | None = None) -> None:
        """Pass bytes on from here on, and those first that came too early."""
        self.relay = Relay(self.gateway.loop, self.client, self.upstream, needles)
        self.client.relaying = True
        rest, self.leftover = self.leftover, b""
        if rest:
            self.relay_up(rest)
        self.client.resume("upgrade")

    def relay_up(self, data: bytes) -> None:
        """Pass bytes on to the provider."""
        self.up.received += len(data)
        if self.relay is not None:
            self.relay.up(data)
            self._alive()

    def relay_down(self, data: bytes) -> None:
        """Pass bytes on to the client."""
        if self.relay is not None:
            self.relay.down(data)
            self._alive()

    # --- back-pressure ---------------------------------------------------------------------------

    def pause_client(self) -> None:
        """Read no more from the client."""
        self.client.pause("upstream")

    def resume_client(self) -> None:
        """Read from the client again."""
        self.client.resume("upstream")

    def pause_upstream(self) -> None:
        """Read no more from the provider."""
        if self.upstream is not None and self.upstream.transport is not None:
            self.upstream.transport.pause_reading()

    def resume_upstream(self) -> None:
        """Read from the provider again."""
        upstream = self.upstream
        if upstream is not None and upstream.transport is not None and not upstream.transport.is_closing():
            upstream.transport.resume_reading()

    # --- the end ---------------------------------------------------------------------------------

    def answer(self, answer: Answer, *, close: bool = False) -> None:
        """Answer in the provider's place. Where its own answer has begun, the connection is cut instead."""
        if self._finished:
            return
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.abort()
        self._outcome = answer.code
        if self.down is not None:
            self._finish(keep_alive=False, cut=True)
            return
        keep = self.keep_alive and not close and self.up.complete and self.method != b"CONNECT"
        self.status = answer.status
        self._first_byte = self.gateway.now() - self.begun
        self.down = Down(answer.head(keep_alive=keep), chunked=False)
        if not self.is_head:
            self.down.feed(answer.body)
        self.client.write(self.down.take())
        self._finish(keep_alive=keep)

    def cut_off(self, answer: Answer) -> None:
        """Take it that the rest of the request never comes, or is not wanted."""
        self.answer(answer, close=True)

    def half_closed(self) -> bool:
        """Say whether a client that will send no more is waited for. It may be gone altogether.

        Whoever closes a half does so behind the request. Once the answer has begun it is taken for gone: a stream that
        says nothing for a while would never find out.
        """
        if self.down is not None:
            return False
        self._wait(_HALF_CLOSED_SECONDS)
        return True

    def timed_out(self) -> None:
        """End what has taken too long."""
        if self.client.half_closed:
            self.client_gone()
        elif not self.up.complete and self.down is None and not self.up.waiting:
            self.answer(answers.failed(408, "request_timeout", "the request did not come to its end", "send it faster"))
        else:
            host = "the provider" if self.plan is None else self.plan.host
            self.answer(answers.failed(504, "upstream_timeout", f"{host} did not answer in time", "try again"))

    def client_gone(self) -> None:
        """End what was begun for a client that is gone."""
        if self._finished or not self.started:
            return
        self._outcome = "client_gone"
        self._finish(keep_alive=False, cut=True)

    def crashed(self, error: BaseException) -> None:
        """Tell a fault of ours: to the log where it happened, to the client that it did."""
        log.error("an exchange failed", exc_info=error)
        self.answer(answers.failed(500, "internal_error", "the gateway met a fault of its own", "see its log"))

    def opened(self) -> None:
        """Take it that a tunnel is open."""
        self.status = 200
        self._first_byte = self.gateway.now() - self.begun

    def record(self, outcome: str) -> None:
        """Put into the trace what became of a tunnel that was taken over."""
        self._outcome = outcome
        self._record()

    def tunnel_opened(self) -> None:
        """Take it that the client's connection belongs to the requests inside from now on."""
        self._finished = True
        self.gateway.ended()

    def _finish(self, *, keep_alive: bool, cut: bool = False) -> None:
        if self._finished:
            return
        self._finished = True
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.abort()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        self._task = None
        self._record()
        self.gateway.ended()
        if cut:
            self.client.abort()
        else:
            self.client.answered(self, keep_alive=keep_alive)

    def _record(self) -> None:
        gateway, reader, live = self.gateway, self.reader, self.live
        counted = None if reader is None else reader.usage
        if self.admitted and live is not None:
            live.meter.done(self._tokens(counted))
        if gateway.trace is None:
            return
        gateway.trace.add(
            row_of(
                self,
                at=gateway.wall(self.begun),
                duration=gateway.now() - self.begun,
                first_byte=self._first_byte,
                outcome=self._outcome,
                counted=counted,
            )
        )

    def _tokens(self, counted: Usage | None) -> int:
        """Give the tokens to count against a limit: what the answer says, else what its size makes likely."""
        told = 0 if counted is None else counted.input_tokens + counted.output_tokens
        # Who leaves before the counts come has had what it has had.
        if self.reader is None or self.down is None or (counted is not None and self._outcome == "ok"):
            return told
        return max(told, (self.up.received + self.down.sent) // BYTES_A_TOKEN)

    def _spawn(self, work: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
        """Go on in a task; it ends with the exchange, perhaps before it began."""
        self._task = self.gateway.loop.create_task(self._guarded(work, *args))

    async def _guarded(self, work: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
        try:
            await work(*args)
        except Exception as error:
            self._failed(error)
        finally:
            # A stream lives for long after the task that began it.
            if self._task is asyncio.current_task():
                self._task = None


def _same_secrets(one: Ready, other: Ready) -> bool:
    a, b = one.access.credential, other.access.credential
    return a is b or (a is not None and b is not None and secrets_of(a) == secrets_of(b))

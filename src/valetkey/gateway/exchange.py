"""One request and its answer: what is known of it, what its client sends, and its end.

`starting` decides on it, `sending` sends it on with the credential, `returning` takes the answer back. The ordinary
request is served without a task: parsed, decided, written anew and sent in one go. Only what has to wait (a connection,
a renewal, a person) gets one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from valetkey.errors import ValetkeyError
from valetkey.gateway import answers
from valetkey.gateway.answers import Answer
from valetkey.gateway.body import MAX_HELD_BYTES, Down, Up, sampled
from valetkey.gateway.entry import row_of

if TYPE_CHECKING:
    from valetkey.credential import CredentialRef
    from valetkey.dialect import Usage
    from valetkey.gateway.client import ClientConnection
    from valetkey.gateway.credentials import Ready
    from valetkey.gateway.message import Header, ReadHead, ReadResponse
    from valetkey.gateway.plan import Plan
    from valetkey.gateway.relay import Relay
    from valetkey.gateway.repeat import Repeat
    from valetkey.gateway.ring import LiveKey
    from valetkey.gateway.upstream import UpstreamConnection
    from valetkey.gateway.usage import UsageReader

__all__ = ["MAX_WAITING_BYTES", "Exchange"]

log = logging.getLogger(__name__)

# A body, or bytes behind an upgrade, that are not wanted yet stop the reading at this.
MAX_WAITING_BYTES = 64 * 1024
# A model answered and told no counts (a stream without `include_usage`): tokens are longer in texts, and JSON is more.
BYTES_A_TOKEN = 4
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
    length = 0
    # The head as it came, where all of the request came at once.
    raw_head = b""
    # The valet key that the client showed, or the placeholder; a run may show none. The id of a key that has ended.
    token = b""
    ended_client = ""
    # The account that the placeholder of a run names.
    chosen: CredentialRef | None = None
    foreign = False
    # The credential that goes into the head.
    ready: Ready | None = None
    # What is done once all of the body is here, and how long it may be for that.
    once_whole: Callable[[], None] | None = None
    most_held_bytes = MAX_HELD_BYTES
    repeat: Repeat | None = None
    _task: asyncio.Task[None] | None = None
    # A 401 that is held back while the login is renewed, and what of its body has come.
    kept: tuple[int, ReadResponse] | None = None
    kept_body: bytearray | None = None
    # What a declaration puts in place of the provider's answer.
    replaced: Answer | None = None
    relay: Relay | None = None
    reader: UsageReader | None = None
    sent_body: bytearray | None = None
    begun = 0.0
    first_byte: float | None = None
    status = 0
    outcome = "ok"
    finished = False
    renewed = False
    retried = False

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
        self.lengths = lengths

    def begin(self) -> None:
        """Take it that its turn has come."""
        gateway = self.gateway
        self.started = True
        self.begun = gateway.now()
        self.give(gateway.settings.response_seconds)
        gateway.begun()

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
        if self.once_whole is not None:
            return self.up.complete
        return self.attached and (bool(self.up.waiting) or (self.up.complete and not self.up.sent_end))

    @property
    def room_bytes(self) -> int:
        """How much of the body may wait before the client is stopped."""
        return self.most_held_bytes + 1 if self.once_whole is not None else MAX_WAITING_BYTES

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
        if self.once_whole is not None:
            limit = min(limit or self.most_held_bytes, self.most_held_bytes)
        if limit and self.up.received > limit and not self.finished:
            told = answers.failed(413, "body_too_large", f"the body is longer than {limit} bytes", "send less")
            if self.started:
                self.cut_off(told)
            else:
                self.problem = told

    def when_whole(self, work: Callable[[], None], *, most_bytes: int = MAX_HELD_BYTES) -> None:
        """Do this once all of the body is here, which may be so long."""
        self.most_held_bytes = most_bytes
        if self.up.complete:
            work()
            return
        self.once_whole = work
        if len(self.client.queue) == 1:
            self.client.resume("queue")

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
        if self.once_whole is not None:
            work, self.once_whole = self.once_whole, None
            work()
        elif self.upstream is not None:
            data = self.up.drain()
            if data:
                self.upstream.write(data)
            self.alive()

    def alive(self) -> None:
        """Take it that something came or went: there is time again."""
        self.give(self.gateway.settings.stream_seconds)

    def give(self, seconds: float) -> None:
        """Give it so long from now on. A client that has closed its half is mostly gone altogether."""
        if self.client.half_closed:
            seconds = min(seconds, _HALF_CLOSED_SECONDS)
        self.client.deadline = self.gateway.tick + seconds

    # --- back-pressure ---------------------------------------------------------------------------

    def clean(self, head: bytes) -> bytes:
        """Give a head of the provider's with the credential overwritten."""
        return head if self.ready is None else self.ready.needles.clean(head)

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
        if self.finished:
            return
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.abort()
        self.outcome = answer.code
        if self.down is not None:
            self.finish(keep_alive=False, cut=True)
            return
        keep = self.keep_alive and not close and self.up.complete and self.method != b"CONNECT"
        self.status = answer.status
        self.first_byte = self.gateway.now() - self.begun
        self.down = Down(answer.head(keep_alive=keep), chunked=False)
        if not self.is_head:
            self.down.feed(answer.body)
        self.client.write(self.down.take())
        self.finish(keep_alive=keep)

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
        self.give(_HALF_CLOSED_SECONDS)
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
        if self.finished or not self.started:
            return
        self.outcome = "client_gone"
        self.finish(keep_alive=False, cut=True)

    def failed(self, error: Exception) -> None:
        """Tell what was raised."""
        if isinstance(error, ValetkeyError):
            self.answer(answers.of_error(error))
        else:
            self.crashed(error)

    def crashed(self, error: BaseException) -> None:
        """Tell a fault of ours: to the log where it happened, to the client that it did."""
        log.error("an exchange failed", exc_info=error)
        self.answer(answers.failed(500, "internal_error", "the gateway met a fault of its own", "see its log"))

    def opened(self) -> None:
        """Take it that a tunnel is open."""
        self.status = 200
        self.first_byte = self.gateway.now() - self.begun

    def record(self, outcome: str) -> None:
        """Put into the trace what became of a tunnel that was taken over."""
        self.outcome = outcome
        self._record()

    def tunnel_opened(self) -> None:
        """Take it that the client's connection belongs to the requests inside from now on."""
        self.finished = True
        self.gateway.ended()

    def finish(self, *, keep_alive: bool, cut: bool = False) -> None:
        """End it, once: into the trace, and on with the client's next request."""
        if self.finished:
            return
        self.finished = True
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
                first_byte=self.first_byte,
                outcome=self.outcome,
                counted=counted,
            )
        )

    def _tokens(self, counted: Usage | None) -> int:
        """Give the tokens to count against a limit: what the answer says, else what its size makes likely."""
        told = 0 if counted is None else counted.input_tokens + counted.output_tokens
        # Who leaves before the counts come has had what it has had.
        if self.reader is None or self.down is None or (counted is not None and self.outcome == "ok"):
            return told
        return max(told, (self.up.received + self.down.sent) // BYTES_A_TOKEN)

    def spawn(self, work: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
        """Go on in a task; it ends with the exchange, perhaps before it began."""
        self._task = self.gateway.loop.create_task(self._guarded(work, *args))

    async def _guarded(self, work: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
        try:
            await work(self, *args)
        except Exception as error:
            self.failed(error)
        finally:
            # A stream lives for long after the task that began it.
            if self._task is asyncio.current_task():
                self._task = None

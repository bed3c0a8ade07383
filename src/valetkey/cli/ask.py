"""`valetkey ask`: one question, its answer while it comes."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import click

from valetkey.access import Access
from valetkey.chat import conversation as conversations
from valetkey.chat.ask import ask as ask_model
from valetkey.chat.conversation import Conversation
from valetkey.chat.models import Chosen, choose, default_model, fetched_lists, set_default_model
from valetkey.cli.frame import State, command, stop
from valetkey.cli.output import plain
from valetkey.dialect import End, Message, Part, Usage
from valetkey.errors import NotLoggedIn, UsageError

# A context beyond this is a mistake (`cat disk.img | …`), and no model takes it.
MAX_STDIN_BYTES = 4 * 1024 * 1024
# What a program that a closed pipe killed ends with: 128 + SIGPIPE. click alone would make it 1.
_PIPE_CLOSED = 141
_HALF_CHARACTER = re.compile(r"[\ud800-\udfff]")


@command("ask")
@click.argument("message", nargs=-1)
@click.option("-m", "--model", metavar="PROVIDER[@ACCOUNT]/MODEL", help="Which model; else the default one.")
@click.option("-c", "--continue", "go_on", is_flag=True, help="Go on with the last conversation.")
@click.option("-s", "--system", metavar="TEXT", help="Instructions for the model.")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="The longest answer, in tokens.")
@click.option("--no-stream", is_flag=True, help="Wait for the whole answer.")
def ask(
    state: State,
    *,
    message: tuple[str, ...],
    model: str | None,
    go_on: bool,
    system: str | None,
    max_tokens: int | None,
    no_stream: bool,
) -> None:
    """Ask a model one question.

    What comes through a pipe is its context (`cat x | valetkey ask "explain"`), or, without MESSAGE or with `-`, the
    question itself.
    """
    question = _question(message)
    before = _before(state) if go_on else None
    chosen = _chosen(state, model, before)
    access = _access(state, chosen.name)
    talk = before or conversations.begin(chosen.name, chosen.model, now=state.clock.now())
    talk = replace(talk, name=chosen.name, model=chosen.model)
    if system is not None:
        talk = talk.with_system(system)
    asked = _Asked(state=state, chosen=chosen, access=access, question=question, talk=talk)
    parts = ask_model(
        access,
        model=chosen.model,
        messages=[*talk.messages, Message(role="user", text=question)],
        http=state.http,
        renew=lambda old: state.run(state.broker.access(chosen.name, use="ask", rejected=old.credential)),
        stream=not no_stream,
        max_output_tokens=max_tokens,
    )
    asked.show(parts)


# --- what is asked ---------------------------------------------------------------------------


def _question(message: tuple[str, ...]) -> str:
    text = " ".join(message).strip()
    piped = _piped(wanted=text == "-").strip()
    if text in ("", "-"):
        if not piped:
            raise UsageError("there is no question", hint='write it behind the command: valetkey ask "what is TLS?"')
        return piped
    return f"{text}\n\n{piped}" if piped else text


def _piped(*, wanted: bool) -> str:
    if sys.stdin is None or (sys.stdin.isatty() and not wanted):
        return ""
    data = sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)
    if len(data) > MAX_STDIN_BYTES:
        raise UsageError(
            f"standard input is longer than {MAX_STDIN_BYTES // 1024 // 1024} MiB",
            hint="give less of it, by `head` or `grep`",
        )
    return data.decode("utf-8", "replace")


def _before(state: State) -> Conversation:
    found = conversations.latest(state.store)
    if found is None:
        raise UsageError("there is no conversation to go on with", hint="leave out --continue")
    return found


# --- who is asked ----------------------------------------------------------------------------


def _chosen(state: State, text: str | None, before: Conversation | None) -> Chosen:
    if text is not None:
        return choose(text, provider_of=state.catalogue.get, lists=lambda: fetched_lists(state.store))
    if before is not None:
        return Chosen(name=before.name, model=before.model)
    return default_model(state.store, setting=state.config.text("default_model")) or _offered(state)


def _offered(state: State) -> Chosen:
    """Let the user choose from what the logins list, and keep the choice. Raises: NotLoggedIn, UsageError."""
    # Reading every declaration takes a while: only here, where nobody knows whom to ask.
    from valetkey.cli.models import lists_of, names_of

    try:
        names = names_of(state)
    except NotLoggedIn as nobody:
        _log_in(state, nobody)
        chosen = default_model(state.store, setting=state.config.text("default_model"))
        if chosen is not None:
            return chosen
        names = names_of(state)
    hint = "name one: -m PROVIDER/MODEL, or set it for good: `valetkey models use PROVIDER/MODEL`"
    if not state.interactive:
        raise UsageError("there is no default model", hint=hint)
    from valetkey.cli.menu import Entry
    from valetkey.cli.menu import choose as choose_from

    lists, problems = lists_of(state, names)
    models = {str(c): c for kept in lists for c in (Chosen(name=kept.name, model=m.id) for m in kept.models)}
    if not models:
        raise problems[0][1] if problems else UsageError("no login lists a model", hint=hint)
    chosen = models[choose_from("Model", [Entry(id=name, label=name) for name in models])]
    set_default_model(state.store, chosen)
    state.note(f"{chosen} is the default model now; `valetkey models use` changes it")
    return chosen


def _access(state: State, name: str) -> Access:
    """Give the access; on a terminal, log in first where there is no login."""
    try:
        return state.run(state.broker.access(name, use="ask"))
    except NotLoggedIn as missing:
        _log_in(state, missing, name)
    return state.run(state.broker.access(name, use="ask"))


def _log_in(state: State, missing: NotLoggedIn, name: str = "") -> None:
    """Offer the login and do it. Raises: `missing` without a terminal or when the user says no."""
    if not state.interactive:
        raise missing
    state.note(missing.message)
    if not click.confirm(f"log in{f' to {plain(name)}' if name else ''} now?", default=True, err=True):
        raise missing
    provider, _, account = name.partition("@")
    words = ["login", *([provider] if provider else []), *(["--account", account] if account else [])]
    root = click.get_current_context().find_root().command
    # Standard output is for the answer.
    with contextlib.redirect_stdout(sys.stderr):
        root.main(args=words, prog_name="valetkey", standalone_mode=False, obj=state)


# --- the answer ------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Asked:
    """A question under way: what came so far, and where it goes."""

    state: State
    chosen: Chosen
    access: Access
    question: str
    talk: Conversation
    text: str = ""
    usage: Usage | None = None
    end: End | None = None
    kept: bool = False

    def show(self, parts: Iterator[Part]) -> None:
        """Print the answer while it comes and keep it; stopped with Ctrl-C, keep what came."""
        try:
            for part in parts:
                self._take(part)
        except KeyboardInterrupt:
            self._keep()
            self._finish_line()
            stop(130)
        except BrokenPipeError:
            self._keep()
            stop(_PIPE_CLOSED)
        except BaseException:
            self._keep()
            self._finish_line()
            raise
        self._finish_line()
        self._keep()
        self._tell()

    def _take(self, part: Part) -> None:
        self.text += part.text
        if part.usage is not None:
            self.usage = part.usage if self.usage is None else self.usage.merged(part.usage)
        if part.end is not None and self.end in (None, "stop"):
            self.end = part.end
        if part.text and not self.state.json:
            # A terminal gets nothing that could move its cursor; a pipe gets what the model said.
            self._write(plain(part.text) if self.state.on_terminal else part.text)

    def _write(self, text: str) -> None:
        sys.stdout.write(text.encode(sys.stdout.encoding, "replace").decode(sys.stdout.encoding))
        sys.stdout.flush()

    def _finish_line(self) -> None:
        if self.text and not self.text.endswith("\n") and not self.state.json and not sys.stdout.closed:
            self._write("\n")

    def _keep(self) -> None:
        # Without a word of an answer there is nothing to go on with.
        if not self.text:
            return
        self.text = _HALF_CHARACTER.sub("\ufffd", self.text)
        conversations.save(self.state.store, self.talk.with_turn(self.question, self.text, now=self.state.clock.now()))
        self.kept = True

    def _tell(self) -> None:
        self.state.emit(
            {
                "provider": self.access.ref.provider,
                "account": self.access.ref.account,
                "model": self.chosen.model,
                "text": self.text,
                "usage": None
                if self.usage is None
                else {"input_tokens": self.usage.input_tokens, "output_tokens": self.usage.output_tokens},
                "end": self.end or "stop",
                "source": self.access.source,
                "conversation": self.talk.id if self.kept else None,
            }
        )
        if self.end == "length":
            self.state.note("the answer was cut at the token limit; --max-tokens N moves it")
        if self.end == "refusal":
            self.state.note("the model or its provider declined to answer")
        if not self.text and self.end == "stop":
            self.state.note("the model answered with nothing")

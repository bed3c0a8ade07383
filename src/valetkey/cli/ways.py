"""The ways to log in, on a terminal and without one: fill in a form, enter a code elsewhere, use the browser, paste."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, assert_never

import click

from valetkey.cli.output import plain
from valetkey.errors import (
    InvalidParameter,
    LoginCancelled,
    LoginTimeout,
    MissingParameter,
    PortsBusy,
    UsageError,
)
from valetkey.flow import EnterFields, EnterUserCode, Input, OpenBrowser, PendingAuthorization

if TYPE_CHECKING:
    from valetkey.cli.frame import State
    from valetkey.cli.login import Wanted
    from valetkey.login import Heard, Logins
    from valetkey.method_choice import Choice
    from valetkey.provider import AuthMethod, Provider
    from valetkey.store import Account

__all__ = ["go"]

# Terminals hand over a pasted text line by line; what belongs together comes within this.
_PASTE_PAUSE_SECONDS = 0.3
_LONGEST_PASTE_BYTES = 64 * 1024


async def go(state: State, provider: Provider, wanted: Wanted) -> Account:
    """Log in as `wanted` says and give the stored account. Raises: what the flow raises; nothing is stored then."""
    parameters = _asked_parameters(state, wanted.choice, wanted.parameters)
    try:
        if wanted.choice.way == "loopback":
            try:
                return await _loopback(state, provider, wanted, parameters)
            except PortsBusy as busy:
                state.note(f"{busy.message}; paste the answer instead")
        pending = await _begin(state, provider, wanted, parameters)
        match pending.action:
            case EnterFields():
                return await _fields(state, pending, pending.action, provider, wanted)
            case EnterUserCode():
                return await _device(state, pending, pending.action, wanted)
            case OpenBrowser():
                return await _paste(state, pending, pending.action, wanted)
            case _:
                assert_never(pending.action)
    finally:
        state.progress("")


async def _begin(
    state: State, provider: Provider, wanted: Wanted, parameters: Mapping[str, str]
) -> PendingAuthorization:
    return await state.logins.begin(
        provider.id,
        method=wanted.choice.method.id,
        account=wanted.ref.account,
        parameters=parameters,
        # The notice was shown and agreed to before.
        accept_restricted=True,
    )


def _asked_parameters(state: State, choice: Choice, given: Mapping[str, str]) -> dict[str, str]:
    """Ask for what a login by browser or code needs before it begins and nothing else gives; forms ask themselves."""
    values = dict(given)
    if choice.way == "fields":
        return values
    for parameter in choice.method.parameters:
        known = parameter.key in values or parameter.default is not None or parameter.default_from
        if known or not parameter.required or any(state.environ.get(name) for name in parameter.environment):
            continue
        values[parameter.key] = state.ask(
            parameter.label, secret=parameter.secret, instead=f"add --param {parameter.key}=VALUE"
        )
    return values


# --- a form ----------------------------------------------------------------------------------


async def _fields(
    state: State, pending: PendingAuthorization, action: EnterFields, provider: Provider, wanted: Wanted
) -> Account:
    if wanted.given is not None:
        answer = _answer_from(wanted, action)
    elif wanted.from_environment:
        answer = _answer_from_environment(state, wanted.choice.method, provider)
    else:
        answer = _answer_asked(state, action, provider, wanted)
    state.progress(f"asking {provider.name} whether it is good" if wanted.verify else "")
    return await state.logins.complete(pending, answer, verify=wanted.verify)


def _answer_from(wanted: Wanted, action: EnterFields) -> dict[str, str]:
    """Read what came through --key or --file: the one secret, or NAME=VALUE lines or a JSON object for several."""
    assert wanted.given is not None  # noqa: S101  # the only caller looked
    text = wanted.given.reveal()
    secrets = [f.key for f in action.fields if f.secret]
    if len(secrets) == 1:
        return {secrets[0]: text}
    if not secrets:
        raise UsageError("this login takes no key", hint="leave out --key and --file")
    shape = "one NAME=VALUE on each line, with the names: " + ", ".join(secrets)
    try:
        found = (
            json.loads(text) if text.startswith("{") else dict(_pair(line) for line in text.split("\n") if line.strip())
        )
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise UsageError(
            "this login takes several secrets, and what was given is not of their form", hint=f"give {shape}"
        )
    names = {name.lower(): name for name in secrets}
    return {names.get(str(name).lower(), str(name)): value for name, value in found.items()}


def _pair(line: str) -> tuple[str, str]:
    name, equals, value = line.strip().removeprefix("export ").partition("=")
    if not equals:
        raise ValueError("no pair")
    return name.strip(), value.strip().strip("\"'")


def _answer_from_environment(state: State, method: AuthMethod, provider: Provider) -> dict[str, str]:
    found = _in_environment(state, method)
    if found is None:
        names = " or ".join(_variables(method))
        raise UsageError(
            f"the environment holds no key of {provider.id}",
            hint=f"set {names}, or pipe the key: --key -" if names else "pipe the key: --key -",
        )
    return found


def _variables(method: AuthMethod) -> list[str]:
    return [*method.environment, *(name for secret in method.secrets for name in secret.environment)]


def _in_environment(state: State, method: AuthMethod) -> dict[str, str] | None:
    if method.secrets:
        found = {
            s.key: value
            for s in method.secrets
            if (value := next((v for n in s.environment if (v := state.environ.get(n))), None)) is not None
        }
        return found if all(s.key in found for s in method.secrets if s.required) else None
    value = next((v for n in method.environment if (v := state.environ.get(n))), None)
    return None if value is None else {"key": value}


def _answer_asked(state: State, action: EnterFields, provider: Provider, wanted: Wanted) -> dict[str, str]:
    instead = f"pipe it: `valetkey login {provider.id} --key - < FILE`"
    answer = _offered(state, wanted.choice.method)
    if action.fields and not answer and state.interactive:
        click.echo(plain(action.label), err=True)
        if action.description:
            click.echo(plain(action.description), err=True)
    for field in action.fields:
        if field.key in answer or field.key in wanted.parameters:
            continue
        # Without a terminal the defaults stand; what is left is the flow's to name.
        if not state.interactive and not (field.secret and field.required):
            continue
        answer[field.key] = _asked(state, field, instead)
    return answer


def _offered(state: State, method: AuthMethod) -> dict[str, str]:
    found = _in_environment(state, method) if state.interactive else None
    if found is None:
        return {}
    names = [
        n for n in (*method.environment, *(n for s in method.secrets for n in s.environment)) if n in state.environ
    ]
    if click.confirm(f"Use the key in {', '.join(names)}?", default=True, err=True):
        return found
    return {}


def _asked(state: State, field: Input, instead: str) -> str:
    label = f"{field.label} ({field.description})" if field.description and not field.secret else field.label
    if field.options:
        label = f"{field.label} ({', '.join(field.options)})"
    # An empty line is an answer where nothing is required.
    default = field.default if field.default is not None else None if field.required else ""
    return state.ask(label, secret=field.secret, default=default, instead=instead)


# --- a code elsewhere ------------------------------------------------------------------------


async def _device(state: State, pending: PendingAuthorization, action: EnterUserCode, wanted: Wanted) -> Account:
    address = action.verification_uri_complete or action.verification_uri
    _show(f"Open  {plain(action.verification_uri)}")
    code = plain(action.user_code)
    _show(f"and enter the code  {code if state.dumb else click.style(code, bold=True)}")
    if state.interactive and not state.dumb:
        _show_qr(address)
    if wanted.choice.open_browser:
        _open(address)
    return await _waited(state, pending, wanted, None)


def _show_qr(address: str) -> None:
    """Draw the address for a phone's camera, where the terminal has room for it."""
    import io
    import shutil

    import segno

    drawing = io.StringIO()
    segno.make(address, error="l").terminal(drawing, border=1, compact=True)
    lines = drawing.getvalue().splitlines()
    columns, rows = shutil.get_terminal_size((80, 24))
    # Each line is half as many cells as characters of colour codes say; the last one is representative.
    if len(lines) < rows and segno.make(address, error="l").symbol_size(border=1)[0] < columns:
        click.echo(drawing.getvalue(), err=True, color=True)


async def _waited(state: State, pending: PendingAuthorization, wanted: Wanted, heard: Heard | None) -> Account:
    """Poll until it is done and count down meanwhile."""
    from valetkey.login import poll_until_complete, progress

    polled = _Verifying(state.logins, verify=wanted.verify)
    limit = timedelta(seconds=wanted.timeout_seconds)

    async def count_down() -> None:
        async for now in progress(pending, clock=state.clock):
            left = max(0, int(min(now.remaining, limit - now.elapsed).total_seconds()))
            state.progress(f"waiting for you, {left // 60}:{left % 60:02} left (Ctrl-C stops)")

    drawing = asyncio.create_task(count_down())
    try:
        return await poll_until_complete(polled, pending, clock=state.clock, timeout=limit, heard=heard)
    finally:
        drawing.cancel()
        with suppress(asyncio.CancelledError):
            await drawing
        state.progress("")


class _Verifying:
    """Polls as the options say."""

    def __init__(self, logins: Logins, *, verify: bool) -> None:
        self._logins = logins
        self._verify = verify

    async def poll(self, pending: PendingAuthorization) -> PendingAuthorization | Account:
        """Ask once."""
        return await self._logins.poll(pending, verify=self._verify)


# --- the browser -----------------------------------------------------------------------------


async def _loopback(state: State, provider: Provider, wanted: Wanted, parameters: Mapping[str, str]) -> Account:
    """Wait for the browser's answer on a port, and for a pasted one at the same time; the first that comes counts."""
    async with state.logins.listening(
        provider.id,
        method=wanted.choice.method.id,
        account=wanted.ref.account,
        parameters=parameters,
        accept_restricted=True,
    ) as (pending, heard):
        assert isinstance(pending.action, OpenBrowser)  # noqa: S101  # what listening() begins
        _show_address(pending.action, opened=wanted.choice.open_browser)
        if state.interactive:
            _show("If the browser cannot reach this machine, paste the address that it ends at here, and Enter.")
        if wanted.choice.open_browser:
            _open(pending.action.authorization_url)
        waiting = [asyncio.create_task(_waited(state, pending, wanted, heard))]
        if state.interactive:
            waiting.append(asyncio.create_task(_pasted_account(state, pending, wanted)))
        return await _first(waiting)


async def _first(waiting: list[asyncio.Task[Account]]) -> Account:
    try:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def _paste(state: State, pending: PendingAuthorization, action: OpenBrowser, wanted: Wanted) -> Account:
    if not state.interactive:
        raise UsageError(
            "the code of this login is pasted, and there is no terminal to paste it on",
            hint="run it on a terminal, or use another --method",
        )
    _show_address(action, opened=wanted.choice.open_browser)
    _show("Then paste here the code that the page shows, or the address that the browser ends at, and Enter.")
    if wanted.choice.open_browser:
        _open(action.authorization_url)
    try:
        return await asyncio.wait_for(_pasted_account(state, pending, wanted), wanted.timeout_seconds)
    except TimeoutError:
        raise LoginTimeout(
            f"nothing was pasted within {wanted.timeout_seconds:.0f} s",
            hint="run it again, with a longer --timeout if you need it",
        ) from None


async def _pasted_account(state: State, pending: PendingAuthorization, wanted: Wanted) -> Account:
    while True:
        text = await _pasted()
        if not text.strip():
            continue
        try:
            return await state.logins.complete(pending, {"pasted": text}, verify=wanted.verify)
        except (MissingParameter, InvalidParameter) as error:
            # Of what was pasted, not of the login: it can be pasted again.
            _show(f"{plain(error.message)}: {plain(error.hint)}")


async def _pasted() -> str:
    """Read what is pasted, all its lines. Raises: LoginCancelled at the end of input."""
    loop = asyncio.get_running_loop()
    received = bytearray()
    came = asyncio.Event()
    ended = False

    def read() -> None:
        nonlocal ended
        part = os.read(sys.stdin.fileno(), 4096)
        ended = ended or not part or len(received) > _LONGEST_PASTE_BYTES
        received.extend(part)
        came.set()

    loop.add_reader(sys.stdin.fileno(), read)
    try:
        await came.wait()
        while not ended:
            came.clear()
            try:
                await asyncio.wait_for(came.wait(), _PASTE_PAUSE_SECONDS)
            except TimeoutError:
                break
    finally:
        loop.remove_reader(sys.stdin.fileno())
    if ended and not received.strip():
        raise LoginCancelled("the login was stopped", hint="run it again when you have the code")
    return received.decode(errors="replace")


def _show_address(action: OpenBrowser, *, opened: bool) -> None:
    _show("Your browser opens. If it does not, open this address:" if opened else "Open this address in a browser:")
    _show(f"  {plain(action.authorization_url)}")


def _show(text: str) -> None:
    # On stderr: stdout is for the result, and may be a pipe.
    click.echo(text, err=True)


def _open(address: str) -> None:
    """Open the user's browser. Never waited for: some run until they are closed."""
    if not address.startswith(("https://", "http://")):
        return
    import webbrowser

    threading.Thread(target=webbrowser.open, args=(address,), name="valetkey-browser", daemon=True).start()

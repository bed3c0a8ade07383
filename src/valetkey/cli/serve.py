"""`serve`, `up`, `down`, `lock` and `unlock`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress

import click

from valetkey import serving
from valetkey.cli.frame import State, command, stop
from valetkey.credential import Secret

__all__ = ["down", "lock", "serve", "unlock", "up"]


@command("serve", short_help="Run the gateway here, until it is stopped.")
@click.option("--host", metavar="ADDRESS", help="The address to listen on, in place of gateway.host.")
@click.option("--port", type=click.IntRange(0, 65535), help="The port, in place of gateway.port; 0 takes a free one.")
@click.option("--idle-exit", type=click.FloatRange(0), metavar="SECONDS", help="End after so long unused; 0 is never.")
@click.option("--background", is_flag=True, hidden=True)
def serve(state: State, *, host: str | None, port: int | None, idle_exit: float | None, background: bool) -> None:
    """Run the gateway of this home here, until it is stopped: Ctrl-C and SIGTERM let what is under way end first.

    `valetkey up` runs it in the background.
    """
    import valetkey
    from valetkey.gateway.process import Listening, harden
    from valetkey.gateway.process import serve as run
    from valetkey.proxies import variables_of_gateway

    harden()
    config, settings_idle = state.config, state.config.seconds("gateway.idle_exit_seconds")
    if background:
        _detach(state)
    idle = idle_exit if idle_exit is not None else settings_idle if background else 0.0
    listening = Listening(
        host=host or config.text("gateway.host") or "",
        port=config.port("gateway.port") if port is None else port,
        idle_exit_seconds=idle or None,
    )

    def ready(about: Mapping[str, object]) -> None:
        with suppress(BrokenPipeError):  # whoever started it has gone away: it serves all the same
            state.emit(about)
            state.say(f"Valetkey {about['version']} serves {about['url']}")
            _flush()
        if background:
            _let_go()

    # What reads the process's own environment (the exporter of traces, a command for the store's key) must not come
    # back to us; the gateway reads the whole of it, and says what it ignores.
    environ = dict(state.environ)
    for name in variables_of_gateway(os.environ):
        del os.environ[name]
    status = run(
        config,
        environ=environ,
        clock=state.clock,
        version=valetkey.__version__,
        listening=listening,
        ready=ready,
    )
    stop(status)


def _detach(state: State) -> None:
    """Leave the session, the folder and the parent; log to a file. Nothing is open yet that a fork would share."""
    from valetkey.stores import modes

    if os.fork():
        os._exit(0)
    os.chdir("/")
    for folder in (str(state.paths.home), str(state.paths.run)):
        modes.own_folder(folder)
    state.start_log(file=str(state.paths.run / serving.LOG))


def _flush() -> None:
    import sys

    sys.stdout.flush()


def _let_go() -> None:
    """Let go of the streams of whoever started it: a pipe that stays open would keep them waiting."""
    void = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(void, descriptor)
    os.close(void)


@command("up", short_help="Run the gateway in the background.")
def up(state: State) -> None:
    """Run the gateway in the background, if it does not run yet, and say where. One of another version is replaced."""
    import valetkey
    from valetkey.gateway import background

    found = background.up(
        state.paths, environ=state.environ, version=valetkey.__version__, tell=lambda text: state.progress(text)
    )
    state.progress("")
    about = found.about
    state.emit({"result": found.how, **about})
    what = {"running": "runs already", "started": "runs now", "restarted": "was started anew"}[found.how]
    state.say(f"The gateway {what}: {about['url']}")
    if about["locked"] and not state.json:
        state.note("the store is locked: run `valetkey unlock`")


@command("down", short_help="End the gateway.")
@click.option("--now", is_flag=True, help="Do not wait for what is under way.")
def down(state: State, *, now: bool) -> None:
    """End the gateway. What is under way gets 30 seconds to end, unless --now is given."""
    from valetkey.gateway import background

    ran = background.down(state.paths, now=now)
    state.emit({"result": "stopped" if ran else "not-running"})
    state.say("The gateway has ended." if ran else "No gateway runs.")


@command("unlock", short_help="Let the gateway open the store.")
@click.option("--passphrase-file", metavar="FILE", help="The passphrase: the first line of a file; - is stdin.")
def unlock(state: State, *, passphrase_file: str | None) -> None:
    """Let the running gateway open the store, and hold its key until `lock` or its end.

    Where a passphrase opens the store it is asked for, once. From then on `token` needs none.
    """
    home = str(state.paths.home)
    if (found := serving.running(home)) is None:
        raise serving.down()
    kind = state.store.source_kind()
    body: dict[str, object] = {}
    if found["locked"] and kind == "passphrase":
        body["passphrase"] = _passphrase(state, passphrase_file).reveal()
    serving.ask(home, "POST", "/unlock", body)
    state.emit({"locked": False, "key_source": kind})
    state.say("The store is open.", fg="green")


def _passphrase(state: State, path: str | None) -> Secret:
    from valetkey.cli.store import read_passphrase
    from valetkey.stores.passphrase import from_environment

    if path is None and (state.environ.get("VALETKEY_PASSPHRASE_FILE") or not state.interactive):
        return from_environment(state.environ)()
    return read_passphrase(state, path, "Passphrase of the store", new=False)


@command("lock", short_help="Let the gateway forget the store's key.")
def lock(state: State) -> None:
    """Let the running gateway forget the key of the store. It refuses every request until `unlock`."""
    home = str(state.paths.home)
    runs = serving.running(home) is not None
    if runs:
        serving.ask(home, "POST", "/lock")
    state.emit({"locked": True, "gateway": runs})
    state.say("The gateway has forgotten the store's key." if runs else "No gateway runs: nothing is held open.")

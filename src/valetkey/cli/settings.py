"""`config show` and `completion`."""

from __future__ import annotations

import click

from valetkey.cli.frame import State, command, group

__all__ = ["completion", "config"]


@group("config", short_help="Show the settings.")
def config(state: State) -> None:
    """Show the settings and where each comes from."""


@command("show", short_help="Show every setting, and where its value comes from.")
def show(state: State) -> None:
    """Show every setting with its value and where that comes from: the file and line, a variable, or the default."""
    settings = state.config
    rows = [(key, settings.value(key), origin) for key, origin in settings.origins().items()]
    rows.sort(key=lambda row: row[0].partition(".")[0])  # what belongs together stands together
    state.emit(
        {
            "file": str(state.paths.config),
            "exists": state.paths.config.exists(),
            "settings": [
                {
                    "key": key,
                    "value": list(value) if isinstance(value, tuple) else value,
                    "origin": "file" if origin.place else "environment" if origin.variable else "default",
                    "place": origin.place or origin.variable,
                }
                for key, value, origin in rows
            ],
        }
    )
    state.table(("KEY", "VALUE", "FROM"), [(key, _shown(value), str(origin)) for key, value, origin in rows])
    state.say()
    state.say(f"File: {state.paths.config}" + ("" if state.paths.config.exists() else " (not there)"))


def _shown(value: object) -> str:
    match value:
        case None:
            return "-"
        case tuple():
            return " ".join(map(str, value)) or "-"
        case _:
            return str(value)


config.add_command(show)


@command("completion", short_help="Print what completes commands in a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(state: State, *, shell: str) -> None:
    """Print a script that completes commands and options: eval "$(valetkey completion bash)"."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None  # noqa: S101  # click has these three
    root = click.get_current_context().find_root().command
    script = found(root, {}, "valetkey", "_VALETKEY_COMPLETE").source()
    state.emit({"shell": shell, "script": script})
    if not state.json:
        click.echo(script)

"""`doctor`: shows what doctor/ finds, layer by layer, and names the layer that fails. docs/cli.md has the statuses."""

from __future__ import annotations

import textwrap
from pathlib import Path

import click

from valetkey.cli.frame import State, command, stop
from valetkey.doctor import LAYERS, Finding, examine

__all__ = ["doctor"]

_MARGIN = 6


@command(
    "doctor",
    short_help="Find out what is wrong.",
    help="Look at what a credential goes through, layer by layer, and name what fails: this machine, each provider"
    " directly, through the gateway, and from inside a sandbox. Nobody is asked anything, and what was begun for it is"
    " ended.\n\nExit status: 0 all is well, else that of the first layer that fails, in this order: "
    + ", ".join(f"{status} {layer}" for layer, status in LAYERS.items())
    + ".",
)
@click.option("--offline", is_flag=True, help="Ask no provider, and start nothing.")
@click.option("--whole-audit", is_flag=True, help="Verify the audit from its first entry; without it: its end.")
@click.option("--policy", "file", type=click.Path(path_type=Path), help="Hold the questions to this policy.")
def doctor(state: State, *, offline: bool, whole_audit: bool, file: Path | None) -> None:
    """Look, and show what is found as it is found."""
    from valetkey.gateway import policy as policies

    state.asks = False
    found: list[Finding] = []
    for finding in examine(
        state,
        offline=offline,
        whole_audit=whole_audit,
        policy=None if file is None else policies.text_of(file),
        policy_file="" if file is None else file.name,
    ):
        found.append(finding)
        _show(state, finding)
    order = list(LAYERS)
    failed = [f for f in found if f.error is not None]
    first = min(failed, key=lambda f: order.index(f.layer), default=None)
    cause = None if first is None else first.error
    state.emit(
        {
            "ok": first is None,
            "layer": None if first is None else first.layer,
            "cause": None if cause is None else cause.as_dict(),
            "findings": [f.as_dict() for f in found],
        }
    )
    if first is not None and cause is not None:
        state.say(f"The first layer that fails: {first.layer}", fg="red", bold=True)
        _say(state, cause.message)
    stop(0 if first is None else LAYERS[first.layer])


def _show(state: State, finding: Finding) -> None:
    mark, color = "ok  ", "green"
    if finding.error is not None or finding.skipped:
        mark, color = ("FAIL", "red") if finding.error is not None else ("skip", "yellow")
    told = ": ".join(text for text in (finding.subject, finding.skipped or finding.detail) if text)
    _say(state, f"{mark}  {finding.layer:<15}  {told}", first="", color=color)
    if finding.error is not None:
        _say(state, finding.error.message)
        # Whole, for it is mostly a command to be pasted: the terminal breaks it where it has to.
        state.say(" " * _MARGIN + finding.error.hint)
    if finding.notice:
        _say(state, f"note: {finding.notice}")


def _say(state: State, text: str, *, first: str = " " * _MARGIN, color: str | None = None) -> None:
    """Print it within the terminal's columns; as one line where there is none."""
    if state.width is None:
        state.say(first + text, fg=color)
        return
    # A path or an address is not cut: what is longer than a line stands on one of its own.
    lines = textwrap.wrap(
        text,
        width=state.width,
        initial_indent=first,
        subsequent_indent=" " * _MARGIN,
        drop_whitespace=True,
        break_long_words=False,
        break_on_hyphens=False,
    )
    for line in lines:
        state.say(line, fg=color)

"""`runs join`: another command beside that of a live run."""

from __future__ import annotations

import sys

import click

from valetkey.audit.recorder import person
from valetkey.cli.frame import State, command

__all__ = ["join_run"]

_SHELL = ("/bin/sh",)


@command("join", short_help="Run a command beside a live run.", context_settings={"allow_interspersed_args": False})
@click.argument("id", metavar="RUN")
@click.argument("argv", metavar="[-- CMD [ARG]…]", nargs=-1, type=click.UNPROCESSED)
def join_run(state: State, *, id: str, argv: tuple[str, ...]) -> None:
    """Run a command, or a shell, with the home, the workspace, the grants and the variables of a run that goes on.

    It is in a sandbox of its own: it sees the files of the run and none of its processes. It ends with the run.
    """
    from valetkey.gateway.runs import Runs
    from valetkey.gateway.trust import system_bundle
    from valetkey.runs.joining import join, over
    from valetkey.runs.record import Records
    from valetkey.sandboxes import sandbox_for

    records = Records(state.paths, state.clock)
    one = records.find(id)
    words = (argv[1:] if argv[:1] == ("--",) else argv) or _SHELL
    sandbox = sandbox_for(one.sandbox, image=one.image, run=one.id)
    sandbox.check()
    order = Runs(state.store, state.clock).order(one.id)
    if order is None or records.state(one) != "running":
        raise over(one)
    state.audit.append("run-joined", who=f"run:{one.id}", detail={"by": person(), "program": words[0]})
    state.broker.close()
    bundle = system_bundle(state.environ)
    sys.exit(join(one, order, words, records=records, sandbox=sandbox, system_bundle=bundle))

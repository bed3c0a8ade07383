"""`ca`: show, export, install-hint, rotate: the certificate authority that intercepted connections are opened with."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from valetkey.cli.frame import State, command, group
from valetkey.errors import UsageError

if TYPE_CHECKING:
    from valetkey.gateway.authority import Authority, Described

__all__ = ["ca"]


@group("ca", short_help="The certificate authority for intercepted connections.")
def ca(state: State) -> None:
    """Look after the certificate authority that a tool has to believe when HTTPS_PROXY is the gateway."""


@command("show", short_help="Say which authority this is.")
def show(state: State) -> None:
    """Say which authority this is, and how long it lasts. It is made when there is none."""
    authority = _authority(state)
    found = authority.open()
    state.emit(_as_dict(found, authority.path))
    state.say(found.subject, bold=True)
    state.say(f"  SHA-256  {found.fingerprint}")
    state.say(f"  until    {found.until:%Y-%m-%d}")
    state.say(f"  file     {authority.path}")


@command("export", short_help="Write its certificate.")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True), default="-")
@click.option("--bundle", is_flag=True, help="With the system's authorities before it, for tools that take one file.")
def export(state: State, *, file: Path, bundle: bool) -> None:
    """Write the certificate as PEM to a file, or to standard output. The key stays where it is."""
    authority = _authority(state)
    pem = authority.bundle(state.environ) if bundle else authority.certificate()
    if str(file) == "-":
        state.emit({"file": None, "pem": pem.decode("utf-8", "replace")})
        if not state.json:
            click.echo(pem, nl=False)
        return
    _write(file, pem)
    state.emit({"file": str(file), "pem": None})
    state.say(f"Written to {file}.")


@command("install-hint", short_help="Say how tools come to believe it.")
def install_hint(state: State) -> None:
    """Print the lines that make systems and tools believe the authority, and those that undo it. Nothing is changed."""
    authority = _authority(state)
    found = authority.open()
    bundle = authority.folder / "bundle.pem"
    hints = list(_hints(authority.path, bundle, found.subject))
    state.emit({"path": str(authority.path), "bundle": str(bundle), "hints": hints})
    for hint in hints:
        state.say(f"# {hint['for']}", bold=True)
        for line in hint["lines"]:
            state.say(line)
        for line in hint["remove"]:
            state.say(f"#   to undo: {line}")
        state.say()
    old = authority.old()
    if old is not None:
        state.note(f"the authority before this one should be believed nowhere any more: SHA-256 {old.fingerprint}")


@command("rotate", short_help="Make a new authority.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def rotate(state: State, *, yes: bool) -> None:
    """Make a new authority. No tool connects through the gateway until it believes the new one."""
    authority = _authority(state)
    question = "Make a new authority? Every tool that believes this one has to be told of the new one."
    if not state.confirm(question, yes=yes):
        raise click.Abort
    found = authority.rotate()
    old = authority.old()
    state.emit(
        {
            **_as_dict(found, authority.path),
            "old_fingerprint": None if old is None else old.fingerprint,
            "old_path": None if old is None else str(authority.old_path),
        }
    )
    state.say(f"The new authority is {found.fingerprint}, in {authority.path}.", fg="green")
    if old is not None:
        state.say(f"Take the old one away where it is believed: {old.fingerprint}, in {authority.old_path}.")
    state.say("`valetkey ca install-hint` says how to do both.")


def _authority(state: State) -> Authority:
    from valetkey.gateway.authority import Authority

    return Authority(state.paths, state.clock)


def _as_dict(found: Described, path: Path) -> dict[str, Any]:
    return {"subject": found.subject, "fingerprint": found.fingerprint, "until": found.until, "path": str(path)}


def _write(file: Path, pem: bytes) -> None:
    """Put it in place whole: a tool may be reading. Only certificates are written over."""
    if file.is_file():
        content = file.read_bytes()
        if b"BEGIN CERTIFICATE" not in content or b"PRIVATE KEY" in content:
            raise UsageError(f"{file} is there and no file of certificates", hint="name another file")
    elif file.exists():  # a pipe, a terminal
        file.write_bytes(pem)
        return
    new = file.with_name(file.name + ".new")
    new.write_bytes(pem)
    os.replace(new, file)


# --- how to have it believed -----------------------------------------------------------------


def _hints(path: Path, bundle: Path, subject: str) -> Iterator[dict[str, Any]]:
    pem, both, name = (shlex.quote(str(text)) for text in (path, bundle, subject))
    made = f"valetkey ca export --bundle {both}"
    keychain = "~/Library/Keychains/login.keychain-db"
    debian, fedora = "/usr/local/share/ca-certificates/valetkey.crt", "/etc/pki/ca-trust/source/anchors/valetkey.pem"
    java = "-cacerts -storepass changeit -alias valetkey"
    yield _hint(
        "Debian, Ubuntu: the whole system",
        [f"sudo cp {pem} {debian}", "sudo update-ca-certificates"],
        [f"sudo rm {debian}", "sudo update-ca-certificates --fresh"],
    )
    yield _hint(
        "Fedora, RHEL: the whole system",
        [f"sudo cp {pem} {fedora}", "sudo update-ca-trust"],
        [f"sudo rm {fedora}", "sudo update-ca-trust"],
    )
    yield _hint(
        "macOS: this user",
        [f"security add-trusted-cert -r trustRoot -k {keychain} {pem}"],
        [f"security delete-certificate -c {name} {keychain}"],
    )
    yield _hint(
        "Windows: this user",
        [f'certutil -user -addstore Root "{path}"'],
        [f'certutil -user -delstore Root "{subject}"'],
    )
    variable = partial(_variable, made=made)
    yield _hint("Node", [f"export NODE_EXTRA_CA_CERTS={pem}"], ["unset NODE_EXTRA_CA_CERTS"])
    yield variable("Python: requests", "REQUESTS_CA_BUNDLE", both)
    yield variable("Python: ssl, httpx, aiohttp; Go, Ruby and others with OpenSSL's variables", "SSL_CERT_FILE", both)
    yield variable("curl", "CURL_CA_BUNDLE", both)
    yield _hint(
        "git",
        [made, f"git config --global http.sslCAInfo {both}"],
        ["git config --global --unset http.sslCAInfo"],
    )
    yield _hint(
        "Java",
        [f"keytool -importcert -noprompt {java} -file {pem}"],
        [f"keytool -delete {java}"],
    )


def _variable(what: str, name: str, bundle: str, *, made: str) -> dict[str, Any]:
    # These take the place of the system's authorities, so the file has to hold both.
    return _hint(what, [made, f"export {name}={bundle}"], [f"unset {name}"])


def _hint(what: str, lines: list[str], remove: list[str]) -> dict[str, Any]:
    return {"for": what, "lines": lines, "remove": remove}


for _command in (show, export, install_hint, rotate):
    ca.add_command(_command)

"""git's own configuration: our helper for the hosts that a login is for. git itself writes the lines."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from valetkey.errors import SetupRefused, UsageError
from valetkey.helpers.places import choose
from valetkey.setup.plan import Plan, Wish, chosen, home_of, no_gateway, no_profile

if TYPE_CHECKING:
    from valetkey.setup.taking_back import Facts

__all__ = ["NEEDS_GATEWAY", "facts", "plan"]

NEEDS_GATEWAY = False
_SECONDS = 20.0


async def plan(wish: Wish, read: Callable[[Path], bytes | None]) -> Plan:
    """Name our helper for each host, as the only one: others would be given what it answers, to store it."""
    no_gateway(wish, "git")
    no_profile(wish, "git")
    found = chosen(wish, "git")
    named = dict.fromkeys(
        (c.base_url.partition("://")[0], host) for c in found for host in c.hosts if not host.startswith("*.")
    )
    places = [f"{scheme}://{host}" for scheme, host in named if choose(found, host=host, tool="git") is not None]
    if not places:
        raise UsageError("no login is for git", hint="log in where your repositories are: `valetkey login github`")
    path = _path(wish)
    before = read(path)
    with tempfile.TemporaryDirectory(prefix="valetkey-") as folder:
        copy = Path(folder) / "config"
        copy.touch(mode=0o600)
        copy.write_bytes(before or b"")
        for place in places:
            key = f"credential.{place}.helper"
            # The empty value forgets helpers that were named before (gitcredentials(7)).
            values = ["", "!" + shlex.join([*wish.program, "helper", "git"])]
            if _git(copy, path, "--get-all", "-z", key, allowed=1).split("\0")[:-1][-2:] != values:
                for value in values:
                    _git(copy, path, "--add", key, value)
        after = copy.read_bytes()
    return Plan(path=path, before=before, after=after)


def facts(content: bytes) -> Facts:
    """Give what git reads in it. Raises: SetupRefused."""
    with tempfile.TemporaryDirectory(prefix="valetkey-") as folder:
        copy = Path(folder) / "config"
        copy.touch(mode=0o600)
        copy.write_bytes(content)
        listed = _git(copy, "the file", "--list", "-z")
    pairs = (entry.partition("\n") for entry in listed.split("\0") if entry)
    return Counter(((key,), equals + value) for key, equals, value in pairs)


def _path(wish: Wish) -> Path:
    """Give the file that `git config --global` writes (git-config(1), FILES)."""
    named = wish.environ.get("GIT_CONFIG_GLOBAL")
    if named:
        return Path(named)
    home = home_of(wish.environ)
    other = Path(wish.environ.get("XDG_CONFIG_HOME") or home / ".config") / "git" / "config"
    return other if other.exists() and not (home / ".gitconfig").exists() else home / ".gitconfig"


def _git(copy: Path, shown: Path | str, *words: str, allowed: int = 0) -> str:
    try:
        done = subprocess.run(  # noqa: S603  # words of ours, no shell, and no secret among them
            ["git", "config", "--file", str(copy), *words],  # noqa: S607  # the git that is to be set up
            capture_output=True,
            timeout=_SECONDS,
            check=False,
            cwd=copy.parent,
            env={name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
        )
    except FileNotFoundError:
        raise SetupRefused("git is not on PATH", hint="install it first") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SetupRefused("git cannot be asked", hint="run `git config --list` to see why") from error
    if done.returncode not in (0, allowed):
        raise SetupRefused(f"{shown} is left as it is: git cannot read it", hint="run `git config --list` to see why")
    return done.stdout.decode(errors="surrogateescape")

"""Git repositories on this machine, and an environment for git that is nobody's."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Repository", "create", "git_environ"]

_PATIENCE_SECONDS = 60


def git_environ(home: Path) -> dict[str, str]:
    """Give git an environment that asks nobody, and has nobody's settings."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_AUTHOR_NAME": "A Tester",
        "GIT_AUTHOR_EMAIL": "tester@example.org",
        "GIT_COMMITTER_NAME": "A Tester",
        "GIT_COMMITTER_EMAIL": "tester@example.org",
        "LC_ALL": "C",
    }


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A bare repository on this machine."""

    folder: Path
    environ: dict[str, str] = field(repr=False)

    def git(self, *words: str) -> str:
        """Run git in it."""
        command = ["git", "-C", str(self.folder), *words]
        done = subprocess.run(command, env=self.environ, capture_output=True, check=True, timeout=_PATIENCE_SECONDS)
        return done.stdout.decode()


def create(root: Path, name: str, files: dict[str, str]) -> Repository:
    """Make `name` (owner/repository.git) below `root`, with one commit on main."""
    folder = root / name
    work = root / "work" / name
    work.mkdir(parents=True)
    environ = git_environ(root)
    for path, text in files.items():
        (work / path).write_text(text)
    in_work = Repository(folder=work, environ=environ)
    in_work.git("init", "-q", "-b", "main")
    in_work.git("add", ".")
    in_work.git("commit", "-q", "-m", "begin")
    in_work.git("clone", "-q", "--bare", str(work), str(folder))
    # Without it a push over HTTP is refused, whoever asks (git-http-backend(1)).
    repository = Repository(folder=folder, environ=environ)
    repository.git("config", "http.receivepack", "true")
    return repository

"""Git repositories over smart HTTP, by real `git http-backend`."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from email.parser import BytesHeaderParser
from pathlib import Path
from urllib.parse import urlencode

from tests.support.local_server import Answer, Received

__all__ = ["GitHost", "Repository", "git_environ"]

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


class GitHost:
    """Answers requests for the repositories below `folder`: put a server, and a door, in front of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def create(self, name: str, files: dict[str, str]) -> Repository:
        """Make `name` (owner/repository.git) with one commit on main."""
        folder = self._folder / name
        work = self._folder / "work" / name
        work.mkdir(parents=True)
        environ = git_environ(self._folder)
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

    def __call__(self, request: Received) -> Answer:
        """Run the CGI program (RFC 3875) for this request."""
        environ = {
            **git_environ(self._folder),
            "GIT_PROJECT_ROOT": str(self._folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": request.path,
            "QUERY_STRING": urlencode(request.query),
            "REQUEST_METHOD": request.method,
            "REMOTE_USER": "x-access-token",
            "CONTENT_TYPE": request.headers.get("content-type", ""),
            "CONTENT_LENGTH": str(len(request.body)),
            "HTTP_CONTENT_ENCODING": request.headers.get("content-encoding", ""),
            "GIT_PROTOCOL": request.headers.get("git-protocol", ""),
        }
        done = subprocess.run(
            ["git", "http-backend"],
            input=request.body,
            env=environ,
            capture_output=True,
            check=True,
            timeout=_PATIENCE_SECONDS,
        )
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        fields = {name.lower(): value for name, value in BytesHeaderParser().parsebytes(head).items()}
        return Answer(status=int(fields.pop("status", "200").split()[0]), headers=fields, body=body)

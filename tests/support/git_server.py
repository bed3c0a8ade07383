"""Repositories behind Basic: git's own http-backend on a LocalServer."""

from __future__ import annotations

import base64
import os
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from valetkey.testing.local_server import Answer, LocalServer, Received

__all__ = ["GitServer", "git_server"]


class GitServer:
    """Serves the bare repositories below `folder` to whoever has this user and password; both may be changed."""

    def __init__(self, folder: Path, *, user: str, password: str) -> None:
        self.folder = folder
        self.user = user
        self.password = password
        self.url = ""
        self.requests: list[Received] = []
        # Other schemes that it names beside Basic, or in its place.
        self.challenge = 'Basic realm="forge"'

    def make(self, name: str) -> None:
        """Make an empty repository that may be pushed to."""
        path = self.folder / name
        subprocess.run(["git", "init", "--quiet", "--bare", "-b", "main", str(path)], check=True)
        subprocess.run(["git", "-C", str(path), "config", "http.receivepack", "true"], check=True)

    def respond(self, request: Received) -> Answer:
        """Answer as a forge does: 401 first, then what http-backend says."""
        self.requests.append(request)
        pair = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        if request.headers.get("authorization") != f"Basic {pair}":
            return Answer(status=401, headers={"www-authenticate": self.challenge})
        done = subprocess.run(
            ["git", "http-backend"], input=request.body, capture_output=True, check=True, env=self._environ(request)
        )
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        status = int(headers.pop("Status", "200 OK").split(" ")[0])
        return Answer(status=status, headers=headers, body=body)

    def _environ(self, request: Received) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            # The repositories may belong to whoever runs the tests under another name.
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
            "PATH_INFO": request.path,
            "QUERY_STRING": "&".join(f"{name}={value}" for name, value in request.query.items()),
            "REQUEST_METHOD": request.method,
            "REMOTE_USER": self.user,
            "REMOTE_ADDR": "127.0.0.1",
            "CONTENT_TYPE": request.headers.get("content-type", ""),
            "CONTENT_LENGTH": str(len(request.body)),
            "HTTP_CONTENT_ENCODING": request.headers.get("content-encoding", ""),
            "GIT_PROTOCOL": request.headers.get("git-protocol", ""),
        }


@contextmanager
def git_server(folder: Path, *, user: str, password: str, tls: ssl.SSLContext | None) -> Iterator[GitServer]:
    """Start it."""
    folder.mkdir(exist_ok=True)
    forge = GitServer(folder, user=user, password=password)
    with LocalServer(forge.respond, tls=tls) as server:
        forge.url = server.url
        yield forge

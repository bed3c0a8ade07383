"""A home that is logged in at the providers of coding agents, a workspace, and the servers behind."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.support.command_line import ORDINARY, CommandLine
from tests.support.connect_proxy import ConnectProxy
from tests.support.front import Door, Target, guarded
from tests.support.gateway_process import end
from tests.support.servers import ApiMock
from tests.support.tls import CertificateAuthority
from tests.support.workplace import packaged_program
from valetkey.testing.canary import holding, holds
from valetkey.testing.command_line import Done
from valetkey.testing.local_server import LocalServer, Received, Reply

__all__ = ["Place", "asked", "placed"]

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 120


@dataclass
class Place:
    """A home that is logged in, a workspace, and the providers' servers behind it."""

    line: CommandLine
    workspace: Path
    servers: dict[str, LocalServer]
    keys: dict[str, str]
    outside: ConnectProxy
    ports: dict[str, int]

    def __call__(self, *words: str) -> Done:
        return self.line(*words, patience_seconds=PATIENCE_SECONDS)

    def login(self, account: str, method: str = "api-key") -> None:
        """Log in with the canary of this provider."""
        words = ["login", account, "--method", method, "--key", "-", "--no-verify", "--yes"]
        provider = account.partition("@")[0]
        done = self.line(*words, stdin=self.keys[method if provider == "anthropic" else provider])
        assert done.status == 0, done.err

    @property
    def anthropic(self) -> LocalServer:
        """Anthropic's server."""
        return self.servers["api.anthropic.com"]

    @property
    def openai(self) -> LocalServer:
        """OpenAI's server."""
        return self.servers["api.openai.com"]

    @property
    def chatgpt(self) -> LocalServer:
        """ChatGPT's server."""
        return self.servers["chatgpt.com"]

    def runs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.line("runs", "list", "--json").json["runs"]
        return found

    def shows(self, *said: str) -> list[str]:
        """Name where a credential is to be seen: in what a run said, or in all that is kept of any."""
        found = []
        for key in self.keys.values():
            found += [text[:40] for text in said if holds(key, text.encode())]
            found += holding(key, [*(self.line.home / "runs").rglob("*"), *self.workspace.rglob("*")])
        return found


@contextlib.contextmanager
def placed(certificate_authority: CertificateAuthority, aimock: ApiMock, tmp_path: Path) -> Iterator[Place]:
    """Start the providers' servers, each behind a door that a canary opens, and give a home without a login."""
    api_key, subscription, openai = (
        Door(header=header, form=form, key=start + "canary" + os.urandom(20).hex())
        for header, form, start in (
            ("x-api-key", "{key}", "sk-ant-api03-"),
            ("authorization", "Bearer {key}", "sk-ant-oat01-"),
            ("authorization", "Bearer {key}", "sk-proj-"),
        )
    )
    claude = Target(aimock.url, {"x-api-key": aimock.api_key})
    codex = Target(aimock.url, {"authorization": f"Bearer {aimock.api_key}"})
    (workspace := tmp_path / "project").mkdir()
    with contextlib.ExitStack() as stack:
        at = certificate_authority.context
        anthropic = stack.enter_context(
            # What one door does not open, the other may.
            LocalServer(guarded_by(api_key, subscription, claude), tls=at("api.anthropic.com"))
        )
        other = stack.enter_context(LocalServer(guarded(openai, codex), tls=at("api.openai.com")))
        plan = Door(key="eyJ" + "canary" + os.urandom(20).hex())
        chatgpt = stack.enter_context(LocalServer(guarded(plan, at_chatgpt(codex)), tls=at("chatgpt.com")))
        gemini = Door(header="x-goog-api-key", form="{key}", key="AIza" + "canary" + os.urandom(20).hex())
        at_google = guarded(gemini, Target(aimock.url, {"x-goog-api-key": aimock.api_key}))
        google = stack.enter_context(LocalServer(at_google, tls=at("generativelanguage.googleapis.com")))
        servers = {
            "api.anthropic.com": anthropic,
            "api.openai.com": other,
            "chatgpt.com": chatgpt,
            "generativelanguage.googleapis.com": google,
        }
        ports = {f"{host}:443": server.port for host, server in servers.items()}
        outside = stack.enter_context(ConnectProxy(ports))
        # Its path is short, so that sockets are in it.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vk"))
        (home := Path(folder, "home")).mkdir(mode=0o700)
        (home / "config.toml").write_text(
            f"[network]\nca_file = {json.dumps(str(certificate_authority.ca_file))}\n"
            f"[agents.claude]\nprogram = {json.dumps(packaged_program('@anthropic-ai/claude-code', 'claude'))}\n"
        )
        (home / "config.toml").chmod(0o600)
        environ = {
            "HTTPS_PROXY": f"http://127.0.0.1:{outside.port}",
            "NO_PROXY": "127.0.0.1",
            # Codex is found here, as npm would put it there.
            "PATH": f"{ROOT / 'node_modules' / '.bin'}:{os.environ['PATH']}",
        }
        line = CommandLine(home=home, through=ORDINARY, environ=environ)
        keys = {
            "api-key": api_key.key,
            "subscription": subscription.key,
            "openai": openai.key,
            "chatgpt": plan.key,
            "google": gemini.key,
        }
        yield Place(line, workspace, servers, keys, outside, ports)
        end(line)


def at_chatgpt(target: Target) -> Callable[[Received], Reply]:
    """Answer where Codex finds a ChatGPT login's API, as the mock does at its own address."""
    return lambda request: target(replace(request, path=request.path.replace("/backend-api/codex", "/v1")))


def guarded_by(one: Door, other: Door, target: Target) -> Callable[[Received], Reply]:
    first, second = guarded(one, target), guarded(other, target)
    return lambda request: first(request) if one.opens(request) else second(request)


def asked(server: LocalServer, text: str) -> list[dict[str, Any]]:
    """Give the questions that had this in them."""
    return [json.loads(request.body) for request in server.requests if text.encode() in request.body]

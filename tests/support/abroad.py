"""Providers by their real names, run by the tests over TLS behind a proxy that leads out; each wants a credential."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tests.support.connect_proxy import ConnectProxy
from tests.support.front import Door, Target, guarded
from tests.support.git_server import GitServer
from tests.support.inside import canary
from tests.support.servers import ApiMock
from tests.support.tls import CertificateAuthority
from valetkey.testing.local_server import Answer, LocalServer, Received, Reply

__all__ = ["OWN_HEADER", "Abroad", "abroad", "token_answer"]

OWN_HEADER = "x-acme-token"
Respond = Callable[[Received], Reply]


class Rotating:
    """An API, each token of which is good for two requests, and its token endpoint: a refresh token counts once."""

    def __init__(self, keys: dict[str, str]) -> None:
        self._keys = keys
        self._lock = threading.Lock()
        self.used: list[str] = []
        self.spent: list[str] = []
        self._left = 0
        self._access, self._refresh = self.issue()

    def issue(self) -> tuple[str, str]:
        """Give the next pair."""
        number = len(self.spent)
        access, refresh = (canary(f"works-{number}-{kind}-") for kind in ("access", "refresh"))
        self._keys[f"works {number}"], self._keys[f"works {number} refresh"] = access, refresh
        self._access, self._refresh, self._left = access, refresh, 2
        return access, refresh

    def api(self, request: Received) -> Reply:
        """Say who one is, to whoever has a token that is good yet."""
        with self._lock:
            if request.headers.get("authorization") != f"Bearer {self._access}" or not self._left:
                return Answer(status=401)
            self._left -= 1
            self.used.append(self._access)
        return token_answer(name="Ann")

    def token(self, request: Received) -> Reply:
        """Give a new pair for the refresh token (RFC 6749 section 6)."""
        with self._lock:
            if request.form.get("refresh_token") != self._refresh:
                return Answer(
                    status=400, headers={"content-type": "application/json"}, body=b'{"error":"invalid_grant"}'
                )
            self.spent.append(self._refresh)
            access, refresh = self.issue()
        return token_answer(access_token=access, refresh_token=refresh, token_type="Bearer", expires_in=3600)


@dataclass(frozen=True, kw_only=True)
class Abroad:
    """All of them. `servers` are by host; `keys` are the credentials, by whose they are: canaries."""

    outside: ConnectProxy
    servers: dict[str, LocalServer]
    keys: dict[str, str]
    git_folder: Path
    exchanges: list[str]
    works: Rotating

    def only(self, host: str) -> list[Received]:
        """Give what came to a host, and see that nothing was wanted of another. Connections may be older."""
        assert {head.split(b" ")[1].decode() for head in self.outside.heads} <= {f"{host}:443"}
        assert [name for name, server in self.servers.items() if server.requests] == [host]
        return list(self.servers[host].requests)

    def forget(self) -> None:
        """Begin a test with nothing received."""
        self.outside.heads.clear()
        for server in self.servers.values():
            server.requests.clear()


def token_answer(**answer: object) -> Answer:
    """Give an answer in JSON."""
    return Answer(headers={"content-type": "application/json"}, body=json.dumps(answer).encode())


@contextlib.contextmanager
def abroad(ca: CertificateAuthority, mock: ApiMock, folder: Path) -> Iterator[Abroad]:
    """Start them all."""
    forms = {"openai": "sk-proj-", "anthropic": "sk-ant-api03-", "google": "AIza", "github": "github_pat_"}
    forms |= {"copilot": "tid=", "copilot-grant": "ghu_", "chatgpt": "eyJ", "mine": "sk-", "acme": "acme-"}
    keys = {whose: canary(form) for whose, form in forms.items()}
    ports: dict[str, int] = {}
    servers: dict[str, LocalServer] = {}
    exchanges: list[str] = []
    bearer = Target(mock.url, {"authorization": f"Bearer {mock.api_key}"})

    def opened(whose: str, header: str = "authorization", form: str = "Bearer {key}") -> Door:
        return Door(header=header, form=form, key=keys[whose])

    def api_github(request: Received) -> Reply:
        if request.path == "/copilot_internal/v2/token":
            exchanges.append(request.headers["authorization"])
            return token_answer(token=keys["copilot"], expires_at=4_000_000_000, refresh_in=1500)
        return guarded(opened("github"), _github)(request)

    def own_header(request: Received) -> Reply:
        alone = "authorization" not in request.headers and "x-api-key" not in request.headers
        if request.headers.get(OWN_HEADER) != keys["acme"] or not alone:
            return Answer(status=401)
        return bearer(request)

    works = Rotating(keys)
    forge = GitServer(folder, user="x-access-token", password=keys["github"])
    responds: dict[str, Respond] = {
        "api.openai.com": guarded(opened("openai"), bearer),
        "api.anthropic.com": guarded(
            opened("anthropic", "x-api-key", "{key}"), Target(mock.url, {"x-api-key": mock.api_key})
        ),
        "generativelanguage.googleapis.com": guarded(
            opened("google", "x-goog-api-key", "{key}"), Target(mock.url, {"x-goog-api-key": mock.api_key})
        ),
        "github.com": forge.respond,
        "api.github.com": api_github,
        "api.githubcopilot.com": guarded(opened("copilot"), _below("/v1", bearer)),
        "chatgpt.com": guarded(opened("chatgpt"), _below("/v1", bearer, instead_of="/backend-api/codex")),
        "llm.company.example": guarded(opened("mine"), bearer),
        "acme.company.example": own_header,
        "api.works.example": works.api,
        "login.works.example": works.token,
    }
    with contextlib.ExitStack() as stack:
        for host, respond in responds.items():
            servers[host] = stack.enter_context(LocalServer(respond, tls=ca.context(host)))
            ports[f"{host}:443"] = servers[host].port
        outside = stack.enter_context(ConnectProxy(ports))
        yield Abroad(outside=outside, servers=servers, keys=keys, git_folder=folder, exchanges=exchanges, works=works)


def _below(path: str, target: Target, *, instead_of: str = "") -> Respond:
    return lambda request: target(replace(request, path=path + request.path.removeprefix(instead_of)))


def _github(request: Received) -> Reply:
    """Answer what `gh` asks for."""
    scopes = {"content-type": "application/json", "x-oauth-scopes": "repo, read:org, gist"}
    answers: dict[str, object] = {
        "/": {"current_user_url": "https://api.github.com/user"},
        "/user": {"login": "octo"},
        "/graphql": {"data": {"viewer": {"login": "octo"}}},
    }
    if request.path not in answers:
        return Answer(status=404, headers=scopes, body=b'{"message": "Not Found"}')
    return Answer(headers=scopes, body=json.dumps(answers[request.path]).encode())

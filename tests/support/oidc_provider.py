"""npm oidc-provider as the tests see it: its addresses, its counters, and a user who approves without a browser."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from urllib.parse import urljoin, urlsplit

import httpx2

from tests.support.server_process import node_server, running

__all__ = ["Counts", "OidcProvider", "oidc_provider"]

_HIDDEN = re.compile(r'<input type="hidden" name="(\w+)" value="([^"]*)"')
_FOLLOW_AT_MOST = 12


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How often each thing happened since the start or the last reset.

    `token` counts requests by grant_type, `errors` the answers of the token endpoint by error code;
    `revoked_grants` counts families that were revoked, which is what reuse of a refresh token leads to.
    """

    token: Mapping[str, int]
    errors: Mapping[str, int]
    device_authorization: int
    revocation: int
    probe: int
    exchange: int
    revoked_grants: int

    @property
    def refreshes(self) -> int:
        """Requests with grant_type=refresh_token, whatever came of them."""
        return self.token.get("refresh_token", 0)


@dataclass(frozen=True, kw_only=True)
class OidcProvider:
    """A running provider. `client_id` is a public client of all grants; redirects go to any port of the loopback.

    Known redirect paths: / /callback /auth/callback /oauth/callback /paste, on 127.0.0.1 and localhost.
    """

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    device_authorization_endpoint: str
    revocation_endpoint: str
    registration_endpoint: str
    userinfo_endpoint: str
    probe_endpoint: str
    exchange_endpoint: str
    client_id: str

    def approve_in_browser(self, authorization_url: str, *, account: str = "alice", deny: bool = False) -> str:
        """Log in and consent as a person in a browser would; give the redirect's Location, which is not followed."""
        with self._browser() as browser:
            return self._walk(browser, browser.get(authorization_url), account=account, deny=deny)

    def approve_device(self, user_code: str, *, account: str = "alice", deny: bool = False) -> None:
        """Type the code into the provider's page, log in and consent (RFC 8628 section 3.3)."""
        with self._browser() as browser:
            page = browser.get(f"{self.issuer}/device")
            xsrf = dict(_HIDDEN.findall(page.text))["xsrf"]
            form = {"xsrf": xsrf, "user_code": user_code}
            if deny:
                browser.post(f"{self.issuer}/device", data={**form, "abort": "yes"})
                return
            page = browser.post(f"{self.issuer}/device", data=form)
            confirm = dict(_HIDDEN.findall(page.text))
            if confirm.get("confirm") != "yes":
                raise AssertionError(f"the code {user_code!r} was not accepted (HTTP {page.status_code})")
            answer = browser.post(f"{self.issuer}/device", data=confirm)
            self._walk(browser, answer, account=account, deny=False)

    def counts(self) -> Counts:
        """Ask how often each thing happened."""
        with self._browser() as browser:
            return Counts(**browser.get(f"{self.issuer}/counts").json())

    def reset_counts(self) -> None:
        """Begin to count anew."""
        self._control(reset_counts=True)

    def drop_token_answers(self, count: int = 1) -> None:
        """Act on the next token requests, rotation included, and lose the answers: the connection is cut."""
        self._control(drop_token_answers=count)

    def delay_token_answers(self, milliseconds: int) -> None:
        """Hold each token request for that long before it is acted on."""
        self._control(token_delay_ms=milliseconds)

    def revoke_everything(self) -> None:
        """End every login, as a person does on the provider's page of connected apps."""
        self._control(revoke_all=True)

    def is_good(self, access_token: str) -> bool:
        """Say whether the provider would take this access token now."""
        with self._browser() as browser:
            answer = browser.get(self.probe_endpoint, headers={"authorization": f"Bearer {access_token}"})
            return answer.status_code == 200

    def _control(self, **wish: object) -> None:
        with self._browser() as browser:
            browser.post(f"{self.issuer}/control", json=wish).raise_for_status()

    def _browser(self) -> httpx2.Client:
        # trust_env is off: a test may have set proxy variables for what it tests.
        return httpx2.Client(follow_redirects=False, trust_env=False, timeout=60)

    def _walk(self, browser: httpx2.Client, answer: httpx2.Response, *, account: str, deny: bool) -> str:
        """Follow redirects on the provider's own pages; give the first Location that leads away, or ''."""
        here = str(answer.url)
        for _ in range(_FOLLOW_AT_MOST):
            location = answer.headers.get("location")
            if location is None:
                if answer.status_code >= 400:
                    raise AssertionError(f"the provider refused (HTTP {answer.status_code}): {answer.text[:500]}")
                return ""
            target = urljoin(here, location)
            if not self._is_own_page(target):
                return target
            params = ({"deny": "1"} if deny else {"account": account}) if "/interaction/" in target else None
            answer = browser.get(target, params=params)
            here = target
        raise AssertionError("the provider's pages lead in a circle")

    def _is_own_page(self, url: str) -> bool:
        parts = urlsplit(url)
        own = parts.path.startswith(("/auth", "/interaction/", "/device")) and parts.path != "/auth/callback"
        return url.startswith(f"{self.issuer}/") and own


@contextlib.contextmanager
def oidc_provider(
    *,
    access_token_seconds: int = 3600,
    refresh_token_seconds: int = 86400,
    device_code_seconds: int = 600,
    access_token_format: str = "opaque",
    refresh_tokens: bool = True,
    rotate: bool = True,
    claims: Mapping[str, object] | None = None,
    redirect_uris: tuple[str, ...] = (),
    exchange_seconds: int = 600,
) -> Iterator[OidcProvider]:
    """Start one of one's own. `access_token_format` is "opaque" or "jwt"; `claims` go into the id_token as they are."""
    settings = {
        "access_token_seconds": access_token_seconds,
        "refresh_token_seconds": refresh_token_seconds,
        "device_code_seconds": device_code_seconds,
        "access_token_format": access_token_format,
        "refresh_tokens": refresh_tokens,
        "rotate": rotate,
        "claims": dict(claims or {}),
        "redirect_uris": list(redirect_uris),
        "exchange_seconds": exchange_seconds,
    }
    with running(node_server("oidc"), settings) as said:
        yield OidcProvider(**{field.name: said[field.name] for field in fields(OidcProvider)})

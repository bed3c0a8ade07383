"""The authorization server of a fake provider: logins with a code and in the browser, tokens, renewals, revocation."""

from __future__ import annotations

import base64
import hashlib
import secrets
import threading
from datetime import datetime, timedelta
from urllib.parse import urlencode

from valetkey.clock import Clock
from valetkey.testing.local_server import Answer, Received
from valetkey.testing.provider_api import answered

__all__ = ["AUTHORIZE", "DEVICE", "REVOKE", "TOKEN", "Logins"]

AUTHORIZE, DEVICE, TOKEN, REVOKE = "/oauth/authorize", "/oauth/device", "/oauth/token", "/oauth/revoke"
_DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_CODE_SECONDS = 600


class Logins:
    """Gives out tokens and knows which are good. Errors are those of RFC 6749 section 5.2 and RFC 8628 section 3.5."""

    def __init__(self, *, clock: Clock, life_seconds: int, refuses_refresh: bool, rotates: bool, waits: bool) -> None:
        self.refreshes = 0
        self.secrets: list[str] = []
        self._clock = clock
        self._life = timedelta(seconds=life_seconds)
        self._refuses_refresh = refuses_refresh
        self._rotates = rotates
        self._approved = not waits
        self._lock = threading.RLock()
        self._access: dict[str, datetime] = {}
        self._refresh: set[str] = set()
        self._device_codes: set[str] = set()
        # code -> (redirect_uri, code_challenge)
        self._codes: dict[str, tuple[str, str]] = {}

    @staticmethod
    def is_for(request: Received) -> bool:
        """Say whether a request is for this part of the server."""
        return request.path in (AUTHORIZE, DEVICE, TOKEN, REVOKE)

    def approve(self) -> None:
        """Approve every login with a code."""
        with self._lock:
            self._approved = True

    def expire(self) -> None:
        """Forget the access tokens."""
        with self._lock:
            self._access.clear()

    def end(self) -> None:
        """Forget all tokens."""
        with self._lock:
            self._access.clear()
            self._refresh.clear()

    def takes(self, shown: str) -> bool:
        """Say whether an access token that lives is in there."""
        now = self._clock.now()
        with self._lock:
            return any(token in shown and now < end for token, end in self._access.items())

    def answer(self, request: Received) -> Answer:
        """Answer at one of the endpoints. Bodies may be forms or JSON."""
        with self._lock:
            if request.path == AUTHORIZE:
                return self._authorize(request)
            fields = _fields(request)
            if request.path == DEVICE:
                return self._device(request)
            if request.path == REVOKE:
                self._access.pop(fields.get("token", ""), None)
                self._refresh.discard(fields.get("token", ""))
                return answered({})
            return self._token(fields)

    def _authorize(self, request: Received) -> Answer:
        query = request.query
        if not query.get("redirect_uri") or query.get("code_challenge_method") != "S256":
            return answered({"error": "invalid_request"}, status=400)
        code = self._made("fake-code-")
        self._codes[code] = (query["redirect_uri"], query.get("code_challenge", ""))
        joint = "&" if "?" in query["redirect_uri"] else "?"
        back = {"code": code, **({"state": query["state"]} if "state" in query else {})}
        return Answer(status=302, headers={"location": f"{query['redirect_uri']}{joint}{urlencode(back)}"})

    def _device(self, request: Received) -> Answer:
        code = self._made("fake-device-")
        self._device_codes.add(code)
        page = f"http://{request.headers.get('host', '127.0.0.1')}/device"
        about = {"user_code": "FAKE-CODE", "verification_uri": page, "expires_in": _CODE_SECONDS, "interval": 1}
        return answered({"device_code": code, **about})

    def _token(self, fields: dict[str, str]) -> Answer:
        match fields.get("grant_type", ""):
            case "refresh_token":
                return self._renewed(fields.get("refresh_token", ""))
            case "authorization_code":
                redirect_uri, challenge = self._codes.pop(fields.get("code", ""), ("", ""))
                good = redirect_uri and (redirect_uri, challenge) == (
                    fields.get("redirect_uri"),
                    _challenge_of(fields.get("code_verifier", "")),
                )
                return self._issued() if good else answered({"error": "invalid_grant"}, status=400)
            case grant if grant == _DEVICE_GRANT:
                code = fields.get("device_code", "")
                if code not in self._device_codes:
                    return answered({"error": "expired_token"}, status=400)
                if not self._approved:
                    return answered({"error": "authorization_pending"}, status=400)
                self._device_codes.discard(code)
                return self._issued()
            case _:
                return answered({"error": "unsupported_grant_type"}, status=400)

    def _renewed(self, token: str) -> Answer:
        self.refreshes += 1
        if self._refuses_refresh or token not in self._refresh:
            return answered({"error": "invalid_grant"}, status=400)
        if not self._rotates:
            return self._issued(token)
        self._refresh.discard(token)
        return self._issued()

    def _issued(self, refresh: str | None = None) -> Answer:
        access = self._made("fake-access-")
        refresh = refresh or self._made("fake-refresh-")
        self._access[access] = self._clock.now() + self._life
        self._refresh.add(refresh)
        life = int(self._life.total_seconds())
        return answered({"access_token": access, "token_type": "Bearer", "expires_in": life, "refresh_token": refresh})

    def _made(self, start: str) -> str:
        self.secrets.append(start + secrets.token_hex(20))
        return self.secrets[-1]


def _fields(request: Received) -> dict[str, str]:
    if request.headers.get("content-type", "").startswith("application/json"):
        return {name: str(value) for name, value in request.json.items()}
    return request.form


def _challenge_of(verifier: str) -> str:
    """See RFC 7636 section 4.6."""
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

"""The servers that nobody here wrote do what the tests of everything else rely on."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Mapping
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2
import pytest

from tests.support.oidc_provider import OidcProvider, oidc_provider
from tests.support.servers import ApiMock, ModelServer

REDIRECT = "http://127.0.0.1:49200/callback"


def authorization_url(provider: OidcProvider, verifier: str, state: str, redirect_uri: str = REDIRECT) -> str:
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    query = {
        "client_id": provider.client_id,
        "response_type": "code",
        "redirect_uri": redirect_uri,
        "scope": "openid email offline_access",
        "state": state,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
    }
    return f"{provider.authorization_endpoint}?{urlencode(query)}"


def token(provider: OidcProvider, **form: str) -> httpx2.Response:
    return httpx2.post(provider.token_endpoint, data={"client_id": provider.client_id, **form})


def log_in(provider: OidcProvider, redirect_uri: str = REDIRECT) -> Mapping[str, str]:
    verifier, state = secrets.token_urlsafe(48), secrets.token_urlsafe(16)
    location = provider.approve_in_browser(authorization_url(provider, verifier, state, redirect_uri))
    assert location.startswith(redirect_uri)
    query = parse_qs(urlsplit(location).query)
    assert query["state"] == [state]
    assert query["iss"] == [provider.issuer]
    answer = token(
        provider,
        grant_type="authorization_code",
        code=query["code"][0],
        code_verifier=verifier,
        redirect_uri=redirect_uri,
    )
    assert answer.status_code == 200, answer.json().get("error")
    tokens: dict[str, str] = answer.json()
    return tokens


@pytest.mark.parametrize("redirect_uri", [REDIRECT, "http://localhost:1455/auth/callback"])
def test_a_login_by_browser_gives_tokens_that_work(oidc: OidcProvider, redirect_uri: str) -> None:
    tokens = log_in(oidc, redirect_uri)
    claims = json.loads(base64.urlsafe_b64decode(tokens["id_token"].split(".")[1] + "=="))
    assert claims["email"] == "alice@example.test"
    assert oidc.is_good(tokens["access_token"])
    assert oidc.counts().token == {"authorization_code": 1}


def test_a_page_of_the_provider_itself_can_be_where_the_code_is_shown(oidc: OidcProvider) -> None:
    assert oidc.is_good(log_in(oidc, f"{oidc.issuer}/paste")["access_token"])


def test_a_user_who_says_no_is_sent_back_with_access_denied(oidc: OidcProvider) -> None:
    location = oidc.approve_in_browser(authorization_url(oidc, "v" * 43, "s"), deny=True)
    assert parse_qs(urlsplit(location).query)["error"] == ["access_denied"]


def device_request(provider: OidcProvider) -> Mapping[str, str]:
    form = {"client_id": provider.client_id, "scope": "openid"}
    answer: dict[str, str] = httpx2.post(provider.device_authorization_endpoint, data=form).json()
    return answer


def poll(provider: OidcProvider, device_code: str) -> httpx2.Response:
    return token(provider, grant_type="urn:ietf:params:oauth:grant-type:device_code", device_code=device_code)


def test_a_device_login_is_pending_until_the_user_approves(oidc: OidcProvider) -> None:
    request = device_request(oidc)
    assert poll(oidc, request["device_code"]).json()["error"] == "authorization_pending"
    oidc.approve_device(request["user_code"])
    assert oidc.is_good(poll(oidc, request["device_code"]).json()["access_token"])


def test_a_device_login_can_be_denied(oidc: OidcProvider) -> None:
    request = device_request(oidc)
    oidc.approve_device(request["user_code"], deny=True)
    assert poll(oidc, request["device_code"]).json()["error"] == "access_denied"


@pytest.mark.parametrize("access_token_format", ["opaque", "jwt"])
def test_reuse_of_a_refresh_token_ends_the_newest_one_too(access_token_format: str) -> None:
    with oidc_provider(access_token_format=access_token_format) as provider:
        first = log_in(provider)
        assert provider.is_good(first["access_token"])
        second = token(provider, grant_type="refresh_token", refresh_token=first["refresh_token"]).json()
        assert second["refresh_token"] != first["refresh_token"]
        assert provider.is_good(second["access_token"])
        reuse = token(provider, grant_type="refresh_token", refresh_token=first["refresh_token"])
        assert reuse.json()["error"] == "invalid_grant"
        after = token(provider, grant_type="refresh_token", refresh_token=second["refresh_token"])
        assert after.json()["error"] == "invalid_grant"
        assert not provider.is_good(second["access_token"])
        assert provider.counts().refreshes == 3
        assert provider.counts().revoked_grants >= 1


def test_an_answer_can_be_lost_after_the_token_was_spent(oidc: OidcProvider) -> None:
    first = log_in(oidc)
    oidc.drop_token_answers(1)
    with pytest.raises(httpx2.RemoteProtocolError):
        token(oidc, grant_type="refresh_token", refresh_token=first["refresh_token"])
    again = token(oidc, grant_type="refresh_token", refresh_token=first["refresh_token"])
    assert again.json()["error"] == "invalid_grant"


def test_everything_can_be_revoked(oidc: OidcProvider) -> None:
    tokens = log_in(oidc)
    oidc.revoke_everything()
    assert not oidc.is_good(tokens["access_token"])
    answer = token(oidc, grant_type="refresh_token", refresh_token=tokens["refresh_token"])
    assert answer.json()["error"] == "invalid_grant"


def test_a_client_can_register_itself(oidc: OidcProvider) -> None:
    wish = {
        "application_type": "native",
        "redirect_uris": [REDIRECT],
        "grant_types": ["authorization_code"],
        "token_endpoint_auth_method": "none",
    }
    answer = httpx2.post(oidc.registration_endpoint, json=wish)
    assert answer.status_code == 201
    assert answer.json()["client_id"]


def test_a_living_token_buys_a_short_lived_key(oidc: OidcProvider) -> None:
    tokens = log_in(oidc)
    bought = httpx2.get(oidc.exchange_endpoint, headers={"authorization": f"token {tokens['access_token']}"}).json()
    use = httpx2.get(f"{oidc.issuer}/keyed", headers={"authorization": f"Bearer {bought['token']}"})
    assert use.status_code == 200
    assert httpx2.get(oidc.exchange_endpoint).status_code == 401


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": "Say hi"}], "max_tokens": 4}),
        ("responses", {"input": "Say hi", "max_output_tokens": 4}),
        ("messages", {"messages": [{"role": "user", "content": "Say hi"}], "max_tokens": 4}),
    ],
)
def test_the_model_answers_in_three_dialects_to_who_has_the_key(
    model: ModelServer, path: str, body: dict[str, object]
) -> None:
    url = f"{model.base_url}/{path}"
    sent = {"model": model.model, **body}
    assert httpx2.post(url, json=sent).status_code == 401
    answer = httpx2.post(url, json=sent, headers={"authorization": f"Bearer {model.api_key}"}, timeout=60)
    assert answer.status_code == 200
    assert answer.json()["model"]


def test_the_model_lists_itself(model: ModelServer) -> None:
    answer = httpx2.get(f"{model.base_url}/models", headers={"authorization": f"Bearer {model.api_key}"})
    assert [entry["id"] for entry in answer.json()["data"]] == [model.model]


def test_the_mock_speaks_gemini_to_who_has_the_key(aimock: ApiMock) -> None:
    url = f"{aimock.url}/v1beta/models/gemini-2.5-flash:generateContent"
    body = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}
    assert httpx2.post(url, json=body).status_code == 401
    answer = httpx2.post(url, json=body, headers={"x-goog-api-key": aimock.api_key})
    assert answer.json()["candidates"][0]["content"]["parts"][0]["text"] == aimock.reply

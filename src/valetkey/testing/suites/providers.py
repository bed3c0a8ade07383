"""What every declaration of a provider promises."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from valetkey.credential import ApiKey, Credential, Fields, OAuthToken, Secret
from valetkey.errors import HostsNotAccepted
from valetkey.gateway import placeholders
from valetkey.inject import endpoint_hosts, fill, headers_for, host_matches, join, reach
from valetkey.provider import AuthMethod, Call, Provider
from valetkey.providers.reader import read
from valetkey.providers.writer import dumps

__all__ = ["ProviderSuite"]

Examples = Mapping[str, str]
SECRET = "s3cr3t-" + "x" * 40
# What would make us look like another product's client (docs/login.md, restricted logins).
IMITATION = {
    "user-agent",
    "editor-version",
    "editor-plugin-version",
    "copilot-integration-id",
    "openai-intent",
    "x-initiator",
    "x-app",
    "originator",
    "anthropic-dangerous-direct-browser-access",
}


def parameters_of(method: AuthMethod, examples: Examples) -> dict[str, str]:
    return {p.key: p.default or next(iter(p.options), examples.get(p.key, "")) for p in method.parameters}


def credential_of(method: AuthMethod, examples: Examples) -> Credential:
    """Make up a credential such as this login would end in."""
    parameters = parameters_of(method, examples)
    if method.secrets or method.source is not None:
        names = ("key", "access_token", "access_key_id", "secret_access_key", "session_token")
        return Fields(method=method.id, values={n: Secret(SECRET) for n in names}, parameters=parameters)
    lasting = method.create_key or method.token.key or method.exchange
    if method.kind in ("device", "authorization-code") and not lasting:
        now = datetime(2026, 11, 22, tzinfo=UTC)
        return OAuthToken(method=method.id, access_token=Secret(SECRET), issued_at=now, parameters=parameters)
    return ApiKey(method=method.id, key=Secret(SECRET), parameters=parameters)


def calls_of(provider: Provider, method: AuthMethod) -> list[Call]:
    profile = method.claims.profile if method.claims else None
    return [c for c in (method.probe or provider.api.probe, provider.api.models, profile) if c is not None]


class ProviderSuite:
    """Subclass it with a fixture `provider`: the declaration as it is read.

    Where a parameter has neither default nor options, let a fixture `examples` give a value by its key.
    """

    @pytest.fixture
    def examples(self) -> Examples:
        """Give values of parameters."""
        return {}

    def test_written_out_and_read_again_it_is_the_same(self, provider: Provider) -> None:
        again = read(dumps(provider), path=Path(provider.path), origin=provider.origin)
        assert again == provider

    def test_it_can_be_asked_whether_a_credential_is_good(self, provider: Provider) -> None:
        assert provider.api.probe is not None or all(m.endpoint for m in provider.auth)

    def test_a_provider_with_models_says_where_they_are_listed(self, provider: Provider) -> None:
        if provider.api.dialect == "none":
            assert provider.api.models is None
        else:
            assert provider.api.models is not None

    def test_every_call_with_the_credential_goes_to_a_declared_host(
        self, provider: Provider, examples: Examples
    ) -> None:
        for method in provider.auth:
            parameters = parameters_of(method, examples)
            base_url, hosts = reach(provider, method, parameters)
            urls = [
                base_url,
                *(join(base_url, fill(c.get or c.post or "/", parameters)) for c in calls_of(provider, method)),
            ]
            for url in urls:
                assert host_matches(urlsplit(url).netloc, hosts), url

    def test_tokens_go_only_over_https(self, provider: Provider, examples: Examples) -> None:
        for method in provider.auth:
            parameters = parameters_of(method, examples)
            assert all(endpoint_hosts(method, parameters))
            base_url, _ = reach(provider, method, parameters)
            assert base_url.startswith("https://") or urlsplit(base_url).hostname == "127.0.0.1"
            for address in (
                method.authorization_endpoint,
                method.device_authorization_endpoint,
                method.token_endpoint,
                method.revocation_endpoint,
                method.exchange.get if method.exchange else None,
                method.create_key.post if method.create_key else None,
            ):
                assert address is None or fill(address, parameters).startswith("https://")

    def test_the_credential_is_put_in_at_its_hosts_and_at_no_other(
        self, provider: Provider, examples: Examples
    ) -> None:
        for method in provider.auth:
            credential = credential_of(method, examples)
            _, hosts = reach(provider, method, credential.parameters)
            for host in (h.replace("*.", "any.") for h in hosts):
                headers = headers_for(
                    credential,
                    method=method,
                    url=f"https://{host}/v1/x",
                    hosts=hosts,
                    headers={"accept": "*/*"},
                    account_id="acct",
                )
                assert method.endpoint or headers != {"accept": "*/*"}
            for host in ("evil.example", "api.evil.example", "xn--pple-43d.com"):
                with pytest.raises(HostsNotAccepted):
                    headers_for(
                        credential, method=method, url=f"https://{host}/", hosts=hosts, headers={}, account_id="acct"
                    )

    def test_what_the_client_sent_for_a_credential_is_taken_out(self, provider: Provider, examples: Examples) -> None:
        for method in provider.auth:
            credential = credential_of(method, examples)
            base_url, hosts = reach(provider, method, credential.parameters)
            sent = {"Authorization": "Bearer vk-1", "X-Api-Key": "vk-1", "Api-Key": "vk-1", "X-Goog-Api-Key": "vk-1"}
            if not method.inject:
                continue
            headers = headers_for(credential, method=method, url=base_url, hosts=hosts, headers=sent, account_id="acct")
            own = {name.rstrip("?+") for rule in method.inject for name in rule.set}
            assert any(SECRET in headers.get(name, "") for name in own)
            # GitHub looks at one header alone; everybody else must not see two.
            assert "vk-1" not in (
                headers.get("authorization", ""),
                headers.get("authorization", "").removeprefix("Bearer "),
            )

    def test_no_header_imitates_another_client(self, provider: Provider) -> None:
        for method in provider.auth:
            tables = [provider.api.headers, method.token.headers, *(rule.set for rule in method.inject)]
            tables += [c.headers for c in calls_of(provider, method)]
            tables += [method.exchange.headers] if method.exchange else []
            tables += [method.create_key.headers] if method.create_key else []
            assert not IMITATION & {name.lower().rstrip("?+") for table in tables for name in table}

    def test_a_restricted_login_says_why_and_where_that_stands(self, provider: Provider) -> None:
        for method in provider.auth:
            if method.standing == "restricted":
                assert "https://" in method.notice
            else:
                assert method.notice == ""
                assert method.for_agents == ()

    def test_what_a_run_sees_is_a_placeholder_that_its_gateway_finds_and_no_secret(
        self, provider: Provider, examples: Examples
    ) -> None:
        for method in provider.auth:
            sandbox = placeholders.sandbox_of(method)
            form = sandbox.placeholder
            made = placeholders.made(form, placeholders.new_tag())
            (mark,) = placeholders.marks_in(made.encode())
            # Nobody takes it for a credential, and what reads one (a prefix, a URL, git's lines) does not stumble.
            assert "placeholder" in form
            assert method.sandbox is None or form.startswith(method.prefix or "")
            assert quote(made, safe="") == made
            values = {
                **parameters_of(method, examples),
                "placeholder": made,
                "base_url": "http://127.0.0.1:3128/x",
            }
            for text in (*sandbox.environment.values(), *("\n".join(lines) for lines in sandbox.files.values())):
                filled = fill(text, values)
                assert SECRET not in filled
                assert set(placeholders.marks_in(filled.encode())) <= {mark}
            # What a tool would look for its key in says whose it is.
            keys = {name for name in sandbox.environment if any(name in other.environment for other in provider.auth)}
            assert all(sandbox.environment[name] == "{placeholder}" for name in keys)

    def test_defaults_have_their_declared_form(self, provider: Provider) -> None:
        for method in provider.auth:
            for parameter in (*method.parameters, *method.secrets):
                assert parameter.label
                assert not (parameter.secret and parameter.default)

"""What every built-in declaration promises. A new provider is tested by being there."""

from __future__ import annotations

import json
import tomllib
from datetime import UTC, date, datetime
from pathlib import Path
from urllib.parse import urlsplit

import jsonschema
import pytest

from valetkey.config import Paths
from valetkey.credential import ApiKey, Credential, Fields, OAuthToken, Secret
from valetkey.errors import HostsNotAccepted
from valetkey.inject import endpoint_hosts, fill, headers_for, host_matches, join, reach
from valetkey.provider import AuthMethod, Call, Provider
from valetkey.providers import BUILT_IN, catalogue
from valetkey.providers.reader import read
from valetkey.providers.writer import dumps

IDS = sorted(path.stem for path in BUILT_IN.glob("*.toml"))
PROVIDERS = {id_: catalogue(Paths(home=Path("/nonexistent"))).get(id_) for id_ in IDS}
METHODS = [(provider, method) for provider in PROVIDERS.values() for method in provider.auth]
each_provider = pytest.mark.parametrize("provider", PROVIDERS.values(), ids=IDS)
each_method = pytest.mark.parametrize(("provider", "method"), METHODS, ids=[f"{p.id}-{m.id}" for p, m in METHODS])

SECRET = "s3cr3t-" + "x" * 40
EXAMPLES = {
    "domain": "github.com",
    "project_id": "my-project-1",
    "resource_name": "my-resource",
    "deployment_name": "my-deployment",
    "role_arn": "arn:aws:iam::123456789012:role/Reader",
}
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


def parameters_of(method: AuthMethod) -> dict[str, str]:
    return {p.key: p.default or next(iter(p.options), EXAMPLES.get(p.key, "")) for p in method.parameters}


def credential_of(method: AuthMethod) -> Credential:
    """Make up a credential such as this login would end in."""
    parameters = parameters_of(method)
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


def test_the_catalogue_has_all_that_was_promised() -> None:
    promised = (
        "anthropic openai chatgpt github-copilot github openrouter google vertex azure-openai bedrock aws xai groq "
        "mistral deepseek cerebras together fireworks zai bigmodel moonshot minimax huggingface perplexity nvidia "
        "cohere vercel-ai-gateway ollama lmstudio vllm llama-cpp localai"
    )
    assert sorted(promised.split()) == IDS


def test_no_two_providers_share_a_name_or_an_alias() -> None:
    names = [name for p in PROVIDERS.values() for name in (p.id, *p.aliases)]
    assert sorted(names) == sorted(set(names))


def test_no_two_providers_read_the_same_variable() -> None:
    names = [(p.id, name) for p in PROVIDERS.values() for m in p.auth for name in m.environment]
    variables = [name for _, name in names]
    assert len(variables) == len(set(variables)), sorted(names, key=lambda pair: pair[1])


@each_provider
def test_written_out_and_read_again_it_is_the_same(provider: Provider) -> None:
    again = read(dumps(provider), path=Path(provider.path), origin="built-in")
    assert again == provider


@each_provider
def test_it_fits_the_schema(provider: Provider) -> None:
    schema = json.loads((BUILT_IN / "schema.json").read_text())
    table = tomllib.loads(Path(provider.path).read_text())
    as_json = json.loads(json.dumps(table, default=lambda value: value.isoformat()))
    jsonschema.Draft202012Validator(schema).validate(as_json)


@each_provider
def test_its_facts_name_their_page_and_day(provider: Provider) -> None:
    assert provider.checked is not None
    assert provider.checked.on >= date(2026, 11, 22)
    assert provider.checked.at.startswith("https://")


@each_provider
def test_it_can_be_asked_whether_a_credential_is_good(provider: Provider) -> None:
    assert provider.api.probe is not None or all(m.endpoint for m in provider.auth)


@each_provider
def test_a_provider_with_models_says_where_they_are_listed(provider: Provider) -> None:
    if provider.api.dialect == "none":
        assert provider.api.models is None
    else:
        assert provider.api.models is not None


@each_method
def test_every_call_with_the_credential_goes_to_a_declared_host(provider: Provider, method: AuthMethod) -> None:
    parameters = parameters_of(method)
    base_url, hosts = reach(provider, method, parameters)
    urls = [base_url, *(join(base_url, fill(c.get or c.post or "/", parameters)) for c in calls_of(provider, method))]
    for url in urls:
        assert host_matches(urlsplit(url).netloc, hosts), url


@each_method
def test_tokens_go_only_over_https(provider: Provider, method: AuthMethod) -> None:
    parameters = parameters_of(method)
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


@each_method
def test_the_credential_is_put_in_at_its_hosts_and_at_no_other(provider: Provider, method: AuthMethod) -> None:
    credential = credential_of(method)
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
            headers_for(credential, method=method, url=f"https://{host}/", hosts=hosts, headers={}, account_id="acct")


@each_method
def test_what_the_client_sent_for_a_credential_is_taken_out(provider: Provider, method: AuthMethod) -> None:
    credential = credential_of(method)
    base_url, hosts = reach(provider, method, credential.parameters)
    sent = {"Authorization": "Bearer vk-1", "X-Api-Key": "vk-1", "Api-Key": "vk-1", "X-Goog-Api-Key": "vk-1"}
    if not method.inject:
        return
    headers = headers_for(credential, method=method, url=base_url, hosts=hosts, headers=sent, account_id="acct")
    own = {name.rstrip("?+") for rule in method.inject for name in rule.set}
    assert any(SECRET in headers.get(name, "") for name in own)
    # GitHub looks at one header alone; everybody else must not see two.
    assert "vk-1" not in (headers.get("authorization", ""), headers.get("authorization", "").removeprefix("Bearer "))


@each_method
def test_no_header_imitates_another_client(provider: Provider, method: AuthMethod) -> None:
    tables = [provider.api.headers, method.token.headers, *(rule.set for rule in method.inject)]
    tables += [c.headers for c in calls_of(provider, method)]
    tables += [method.exchange.headers] if method.exchange else []
    tables += [method.create_key.headers] if method.create_key else []
    assert not IMITATION & {name.lower().rstrip("?+") for table in tables for name in table}


@each_method
def test_a_restricted_login_says_why_and_where_that_stands(provider: Provider, method: AuthMethod) -> None:
    if method.standing == "restricted":
        assert "https://" in method.notice
    else:
        assert method.notice == ""
        assert method.for_agents == ()


@each_method
def test_what_a_run_sees_is_no_secret(provider: Provider, method: AuthMethod) -> None:
    if method.sandbox is not None:
        values = {**parameters_of(method), "placeholder": method.sandbox.placeholder}
        assert SECRET not in " ".join(fill(text, values) for text in method.sandbox.environment.values())
        assert "placeholder" in method.sandbox.placeholder


@each_method
def test_defaults_have_their_declared_form(provider: Provider, method: AuthMethod) -> None:
    for parameter in (*method.parameters, *method.secrets):
        assert parameter.label
        assert not (parameter.secret and parameter.default)


def test_a_server_near_by_gets_no_header_without_a_key() -> None:
    optional = [(p, m) for p, m in METHODS if m.optional]
    assert optional
    for provider, method in optional:
        base_url, hosts = reach(provider, method, {})
        empty = ApiKey(method=method.id, key=Secret(""))
        assert headers_for(empty, method=method, url=base_url, hosts=hosts, headers={}) == {}

"""What single built-in declarations say: the facts that no rule could check."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from valetkey.chat.models import fixed, known
from valetkey.config import Paths
from valetkey.credential import ApiKey, Secret
from valetkey.dialect import Model
from valetkey.inject import headers_for, host_matches, reach
from valetkey.pointer import text_at
from valetkey.provider import AuthMethod, Provider
from valetkey.providers import catalogue


def provider_of(name: str) -> Provider:
    return catalogue(Paths(home=Path("/nonexistent"))).get(name)


def defaults_of(method: AuthMethod) -> dict[str, str]:
    return {p.key: p.default or next(iter(p.options), "") for p in method.parameters}


def test_git_at_github_gets_basic_and_the_api_bearer() -> None:
    provider = provider_of("github")
    method = provider.auth[0]
    credential = ApiKey(method=method.id, key=Secret("k"), parameters={"domain": "company.ghe.com"})
    base_url, hosts = reach(provider, method, credential.parameters)
    assert base_url == "https://api.company.ghe.com"
    api = headers_for(credential, method=method, url=base_url, hosts=hosts, headers={})
    git = headers_for(credential, method=method, url="https://company.ghe.com/a/b.git", hosts=hosts, headers={})
    assert api == {"authorization": "Bearer k"}
    assert git == {"authorization": "Basic eC1hY2Nlc3MtdG9rZW46aw=="}


@pytest.mark.parametrize(
    ("name", "parameters", "base_url"),
    [
        (
            "vertex",
            {"project_id": "p-12345", "location": "europe-west4"},
            "https://europe-west4-aiplatform.googleapis.com",
        ),
        ("vertex", {"project_id": "p-12345", "location": "global"}, "https://aiplatform.googleapis.com"),
        ("moonshot", {"region": "cn"}, "https://api.moonshot.cn/v1"),
        ("moonshot", {"region": "global"}, "https://api.moonshot.ai/v1"),
        ("bedrock", {"region": "eu-central-1"}, "https://bedrock-mantle.eu-central-1.api.aws/v1"),
        ("azure-openai", {"resource_name": "res"}, "https://res.openai.azure.com"),
    ],
)
def test_parameters_choose_the_address(name: str, parameters: dict[str, str], base_url: str) -> None:
    provider = provider_of(name)
    method = provider.auth[0]
    filled, hosts = reach(provider, method, {**defaults_of(method), **parameters})
    assert filled == base_url
    assert host_matches(urlsplit(base_url).netloc, hosts)


def test_the_chatgpt_account_is_found_in_the_namespaced_claims() -> None:
    claims = provider_of("chatgpt").auth[0].claims
    assert claims is not None
    document = {"https://api.openai.com/auth": {"chatgpt_account_id": "acct", "chatgpt_plan_type": "plus"}}
    found = [text_at(document, pointer) for pointer in claims.account_id]
    assert [f for f in found if f] == ["acct"]
    assert text_at(document, claims.plan[0]) == "plus"


@pytest.mark.parametrize(
    ("name", "method", "agents"),
    [("anthropic", "subscription", ("claude",)), ("github-copilot", "device", ("copilot",)), ("chatgpt", "login", ())],
)
def test_restricted_logins_serve_whom_their_terms_name(name: str, method: str, agents: tuple[str, ...]) -> None:
    declared = provider_of(name).method(method)
    assert declared is not None
    assert declared.standing == "restricted"
    assert declared.for_agents == agents


@pytest.mark.parametrize("name", ["evil/x", "a.b", "user@evil", "x:1", "x?y", "", "x\n"])
def test_an_azure_resource_can_not_leave_its_host(name: str) -> None:
    resource = provider_of("azure-openai").auth[0].parameters[0]
    assert resource.pattern is not None
    assert not re.fullmatch(resource.pattern, name)


def test_the_deployment_is_azure_s_model() -> None:
    provider = provider_of("azure-openai")
    assert fixed(provider) == []  # it differs from login to login
    assert known(provider, {"deployment_name": "mine"}) == [Model(id="mine")]

"""What each built-in declaration promises (valetkey.testing.suites.providers); a new one is tested by being there."""

from __future__ import annotations

import json
import tomllib
from datetime import date
from pathlib import Path

import jsonschema
import pytest

from valetkey.config import Paths
from valetkey.credential import ApiKey, Secret
from valetkey.inject import headers_for, reach
from valetkey.provider import Provider
from valetkey.providers import BUILT_IN, catalogue
from valetkey.testing.suites.providers import ProviderSuite

IDS = sorted(path.stem for path in BUILT_IN.glob("*.toml"))
PROVIDERS = {id_: catalogue(Paths(home=Path("/nonexistent"))).get(id_) for id_ in IDS}
METHODS = [(provider, method) for provider in PROVIDERS.values() for method in provider.auth]
each_provider = pytest.mark.parametrize("provider", PROVIDERS.values(), ids=IDS)

EXAMPLES = {
    "domain": "github.com",
    "project_id": "my-project-1",
    "resource_name": "my-resource",
    "deployment_name": "my-deployment",
    "role_arn": "arn:aws:iam::123456789012:role/Reader",
}


class TestProviders(ProviderSuite):
    """Each of them."""

    @pytest.fixture(params=IDS)
    def provider(self, request: pytest.FixtureRequest) -> Provider:
        return PROVIDERS[request.param]

    @pytest.fixture
    def examples(self) -> dict[str, str]:
        return EXAMPLES


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


def test_a_server_near_by_gets_no_header_without_a_key() -> None:
    optional = [(p, m) for p, m in METHODS if m.optional]
    assert optional
    for provider, method in optional:
        base_url, hosts = reach(provider, method, {})
        empty = ApiKey(method=method.id, key=Secret(""))
        assert headers_for(empty, method=method, url=base_url, hosts=hosts, headers={}) == {}

"""The declaration does what each has to, and a request through the gateway arrives at Acme as declared."""

import httpx2
import pytest

from valetkey.config import Paths
from valetkey.providers import catalogue
from valetkey.testing import FakeProvider
from valetkey.testing.suites import ProviderSuite


@pytest.fixture
def provider(valetkey_home):
    return catalogue(Paths(home=valetkey_home)).get("acme")


class TestAcme(ProviderSuite):
    """What every declaration promises."""


def test_acme_gets_the_key_and_the_tool_does_not(provider, valetkey_gateway, canary, assert_no_canary):
    with FakeProvider().declared_by(provider).with_api_key(canary) as acme:
        valetkey_gateway.login(acme)
        tool = valetkey_gateway.create_key("acme")
        answer = httpx2.get(f"{tool.url}/acme/models", headers={"authorization": f"Bearer {tool.key}"}, trust_env=False)
        assert answer.json()["data"][0]["id"] == "fake-model"
        assert acme.api_requests[-1].headers["x-acme-key"] == canary
        assert_no_canary(answer.text, tool.log, tool.valetkey.home)

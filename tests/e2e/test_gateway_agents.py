"""Claude Code and Codex, the real programs, ask one question: straight, by base URL, and through the proxy."""

from __future__ import annotations

import pytest

from tests.support.proofs import assert_credentials_stay
from tests.support.servers import ApiMock
from tests.support.upstreams import Upstreams
from tests.support.ways import Access, Reach, Way
from tests.support.workplace import Workplace, packaged_program

QUIET_CLAUDE = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_ERROR_REPORTING": "1",
}
# The last one would send the key to chatgpt.com, and without it there try for six seconds.
QUIET_CODEX = """
model = "gpt-5"
check_for_update_on_startup = false
analytics.enabled = false
feedback.enabled = false
features.plugins = false
features.api_key_model_discovery = false
"""
CODEX_PROVIDER = """
model_provider = "mock"
[model_providers.mock]
name = "Mock"
base_url = "{base_url}"
wire_api = "responses"
env_key = "MOCK_API_KEY"
"""


def ask_claude(access: Access, workplace: Workplace, **environ: str) -> str:
    claude = packaged_program("@anthropic-ai/claude-code", "claude")
    done = workplace.run([claude, "-p", "Say hello."], access, {**QUIET_CLAUDE, **environ})
    assert done.status == 0, done.out + done.err
    return done.out


def ask_codex(access: Access, workplace: Workplace, config: str, **environ: str) -> str:
    home = workplace.home / "codex"
    home.mkdir()
    (home / "config.toml").write_text(QUIET_CODEX + config)
    codex = packaged_program("@openai/codex", "vendor/*/bin/codex")
    command = [codex, "exec", "--skip-git-repo-check", "Say hello."]
    done = workplace.run(command, access, {"CODEX_HOME": str(home), **environ})
    assert done.status == 0, done.out + done.err
    return done.out


@pytest.mark.parametrize("variable", ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"])
@pytest.mark.parametrize("way", ["base-url"], indirect=True)
def test_claude_code_by_base_url(
    way: Way, reach: Reach, upstreams: Upstreams, aimock: ApiMock, workplace: Workplace, variable: str
) -> None:
    """The one variable is sent as x-api-key, the other as Bearer."""
    access = reach("mock-claude")
    keys = {"ANTHROPIC_BASE_URL": access.base_url, variable: access.key}
    assert ask_claude(access, workplace, **keys) == aimock.reply + "\n"
    assert upstreams.asked_outside == set()
    assert_credentials_stay(way, upstreams["mock-claude"], access, workplace)


@pytest.mark.parametrize("way", ["direct", "proxy"], indirect=True)
def test_claude_code_at_its_usual_address(
    way: Way, reach: Reach, upstreams: Upstreams, aimock: ApiMock, workplace: Workplace
) -> None:
    access = reach("anthropic")
    assert ask_claude(access, workplace, ANTHROPIC_API_KEY=access.key) == aimock.reply + "\n"
    assert upstreams.asked_outside == {"api.anthropic.com:443"}
    assert_credentials_stay(way, upstreams["anthropic"], access, workplace)


def test_codex_at_a_provider_of_its_config(
    way: Way, reach: Reach, upstreams: Upstreams, aimock: ApiMock, workplace: Workplace
) -> None:
    access = reach("mock-openai")
    config = CODEX_PROVIDER.format(base_url=access.base_url)
    assert ask_codex(access, workplace, config, MOCK_API_KEY=access.key) == aimock.reply + "\n"
    assert upstreams.asked_outside == set()
    assert_credentials_stay(way, upstreams["mock-openai"], access, workplace)


@pytest.mark.parametrize("way", ["direct", "proxy"], indirect=True)
def test_codex_at_its_usual_address(
    way: Way, reach: Reach, upstreams: Upstreams, aimock: ApiMock, workplace: Workplace
) -> None:
    access = reach("openai")
    assert ask_codex(access, workplace, "", CODEX_API_KEY=access.key) == aimock.reply + "\n"
    assert upstreams.asked_outside == {"api.openai.com:443"}
    # All over one WebSocket: where that fails, it asks again by POST.
    asked = [(r.method, r.path, r.headers.get("upgrade")) for r in upstreams["openai"].server.requests]
    assert asked == [("GET", "/v1/responses", "websocket")]
    assert_credentials_stay(way, upstreams["openai"], access, workplace)

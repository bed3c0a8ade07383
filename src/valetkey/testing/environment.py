"""What a developer's shell has and a test must not see."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["foreign"]

# Credentials, proxies, our own settings, and what tells us where we run.
_FOREIGN = re.compile(
    r".*_(API_KEY|API_TOKEN|AUTH_TOKEN|ACCESS_TOKEN|TOKEN|BASE_URL|API_BASE|PROXY)|(HTTP|HTTPS|ALL|NO|FTP)_PROXY"
    r"|(AWS|AZURE|GOOGLE|GCLOUD|CLOUDSDK|VERTEX|ANTHROPIC|OPENAI|CLAUDE|CODEX|GEMINI|GH|GITHUB|VALETKEY|XDG|SSH)_.*"
    r"|DISPLAY|WAYLAND_DISPLAY|BROWSER|CI|DBUS_SESSION_BUS_ADDRESS|NO_COLOR|FORCE_COLOR|CLICOLOR.*",
    re.IGNORECASE,
)


def foreign(names: Iterable[str]) -> list[str]:
    """Give those variables that a test is not to have."""
    return [name for name in names if _FOREIGN.fullmatch(name)]

"""AWS's config file: a profile whose keys come from credential_process."""

from __future__ import annotations

import configparser
import re
import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from valetkey import helpers
from valetkey.errors import SetupRefused, UsageError
from valetkey.helpers import aws as protocol
from valetkey.setup import sections
from valetkey.setup.plan import Plan, Wish, home_of, no_gateway, one_account

if TYPE_CHECKING:
    from valetkey.setup.taking_back import Facts

__all__ = ["NEEDS_GATEWAY", "facts", "plan"]

NEEDS_GATEWAY = False
_PROFILE = re.compile(r"[A-Za-z0-9._@+-]{1,128}\Z")
_USUAL_PROFILE = "valetkey"
# What the SDKs take before credential_process (botocore's chain).
_FIRST = ("role_arn", "web_identity_token_file", "sso_session", "sso_start_url", "aws_access_key_id")


async def plan(wish: Wish, read: Callable[[Path], bytes | None]) -> Plan:
    """Give a profile our credential_process."""
    no_gateway(wish, "aws")
    name = one_account(wish, helpers.usual(wish.broker, "aws"))
    await protocol.answer(wish.broker, name)
    profile = wish.profile or _USUAL_PROFILE
    if not _PROFILE.match(profile):
        raise UsageError(f"{profile[:40]!r} is no name for a profile", hint="use letters, digits and . _ @ + -")
    named = wish.environ.get("AWS_CONFIG_FILE")
    home = home_of(wish.environ)
    path = Path(named) if named else home / ".aws" / "config"
    before = read(path)
    section = profile if profile == "default" else f"profile {profile}"
    found = _read(before or b"", path)
    header = next((s for s in found.sections() if _words(s) == _words(section)), None)
    value = shlex.join([*wish.program, "helper", "aws", name])
    after = sections.with_value(
        (before or b"").decode(), header=f"[{header or section}]", name="credential_process", value=value
    ).encode()
    expected, again = _as_dict(found), _as_dict(_read(after, path))
    expected.setdefault(header or section, {})["credential_process"] = value
    if again != expected:
        raise SetupRefused(f"{path} is left as it is: it is written in an unusual way", hint="make the setting by hand")
    keys = Path(wish.environ.get("AWS_SHARED_CREDENTIALS_FILE") or home / ".aws" / "credentials")
    notes = [f"{n} of that profile comes first; take it out" for n in _FIRST if header and found.has_option(header, n)]
    if f"[{profile}]" in (read(keys) or b"").decode(errors="replace"):
        notes.append(f"the keys of {profile} in {keys} come first; take them out")
    return Plan(path=path, before=before, after=after, notes=tuple(notes))


def facts(content: bytes) -> Facts:
    """Give each value with its section. Raises: SetupRefused."""
    found = _as_dict(_read(content, "the file"))
    return Counter(((section, name), value) for section, held in found.items() for name, value in held.items())


def _words(section: str) -> list[str]:
    try:
        return shlex.split(section)
    except ValueError:
        return [section]


def _read(content: bytes, path: Path | str) -> configparser.RawConfigParser:
    # As botocore reads it: no section stands in for the others.
    found = configparser.RawConfigParser(default_section="")
    try:
        found.read_string(content.decode())
    except (configparser.Error, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise SetupRefused(
            f"{path} is left as it is: it cannot be read" + (f" (line {line})" if line else ""),
            hint="mend it, or make the setting by hand",
        ) from None
    return found


def _as_dict(found: configparser.RawConfigParser) -> dict[str, dict[str, str]]:
    return {section: dict(found.items(section)) for section in found.sections()}

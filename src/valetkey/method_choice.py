"""Chooses the way to log in by where we are: with a browser, over SSH, in a container, without a display, in CI."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, assert_never

from valetkey.errors import UsageError
from valetkey.provider import AuthMethod, Provider

__all__ = ["Choice", "Way", "choose_method", "has_browser", "in_container"]

Way = Literal["loopback", "device", "paste", "fields"]
# Variables that say that whoever sits before the screen sits elsewhere, or that nobody does.
_REMOTE = ("SSH_CONNECTION", "SSH_TTY", "SSH_CLIENT", "CODESPACES", "REMOTE_CONTAINERS", "KUBERNETES_SERVICE_HOST")
_DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY")
_CONTAINER_MARKS = ("/.dockerenv", "/run/.containerenv")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How to log in. `open_browser` says that we may open one; else the address is only shown."""

    method: AuthMethod
    way: Way
    open_browser: bool


def has_browser(environ: Mapping[str, str], *, container: bool, platform: str = sys.platform) -> bool:
    """Say whether a browser here can be opened and can reach our loopback. In CI and in containers never."""
    if container or "container" in environ or any(environ.get(name) for name in _REMOTE):
        return False
    if environ.get("CI", "").lower() not in ("", "0", "false"):
        return False
    # macOS and Windows always have a display; elsewhere a variable names it, also in WSL.
    return platform in ("darwin", "win32") or any(environ.get(name) for name in _DISPLAYS)


def in_container() -> bool:
    """Say whether docker or podman has left its mark here."""
    return any(os.path.exists(mark) for mark in _CONTAINER_MARKS)


def choose_method(provider: Provider, *, browser: bool, method: str | None = None) -> Choice:
    """Choose method and way. With a browser: loopback, else device, else paste; without one: device, else paste.

    `method` (an id) is taken as it is. Otherwise a restricted login, or one that needs an OAuth app of one's own,
    comes after all others. Raises: UsageError.
    """
    if method is not None:
        named = provider.method(method)
        if named is None:
            known = ", ".join(m.id for m in provider.auth) or "none"
            raise UsageError(
                f"{provider.id} has no way to log in called {method[:40]!r}",
                hint=f"use one of: {known}",
                provider=provider.id,
            )
        return _choice(named, browser)
    if not provider.auth:
        raise UsageError(f"{provider.id} needs no login", hint=f"just use {provider.id}", provider=provider.id)
    order: tuple[Way, ...] = ("loopback", "device", "paste", "fields") if browser else ("device", "paste", "fields")

    def rank(choice: Choice) -> tuple[bool, bool, int]:
        chosen = choice.method
        return chosen.client_id == "", chosen.standing == "restricted", order.index(choice.way)

    return min((_choice(m, browser) for m in provider.auth), key=rank)


def _choice(method: AuthMethod, browser: bool) -> Choice:
    way = _way(method, browser)
    return Choice(method=method, way=way, open_browser=browser and way != "fields")


def _way(method: AuthMethod, browser: bool) -> Way:
    match method.built_in_kind:
        case None if method.redirect is None:
            return "fields" if method.device_authorization_endpoint is None else "device"
        case "authorization-code" | None:
            loopback = method.redirect is not None and method.redirect.loopback is not None
            return "loopback" if browser and loopback else "paste"
        case "device" | "device-exchange":
            return "device"
        case "api-key" | "cloud" | "custom":
            return "fields"
        case _:
            assert_never(method.built_in_kind)

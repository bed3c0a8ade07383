"""Which way to log in is chosen where."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.declarations import method, provider
from valetkey.errors import UsageError
from valetkey.method_choice import Way, choose_method, has_browser
from valetkey.provider import AuthMethod, Redirect

URL = "https://login.example"
KEY = method("api-key", URL)
DEVICE = method("device", URL)
BROWSER = method("authorization-code", URL)
PASTE = replace(BROWSER, redirect=Redirect(paste=f"{URL}/code"))


@pytest.mark.parametrize(
    ("environ", "container", "platform", "browser"),
    [
        ({}, False, "linux", False),
        ({"DISPLAY": ":0"}, False, "linux", True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, False, "linux", True),
        ({"DISPLAY": ""}, False, "linux", False),
        ({}, False, "darwin", True),
        ({}, False, "win32", True),
        ({"DISPLAY": ":10", "SSH_CONNECTION": "1 2 3 4"}, False, "linux", False),
        ({"SSH_TTY": "/dev/pts/1"}, False, "darwin", False),
        ({"DISPLAY": ":0"}, True, "linux", False),
        ({"DISPLAY": ":0", "container": "podman"}, False, "linux", False),
        ({"DISPLAY": ":0", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False, "linux", False),
        ({"DISPLAY": ":0", "CI": "true"}, False, "linux", False),
        ({"CI": "1"}, False, "darwin", False),
        ({"DISPLAY": ":0", "CI": "false"}, False, "linux", True),
        ({"CODESPACES": "true", "DISPLAY": ":0"}, False, "linux", False),
    ],
)
def test_where_a_browser_can_be_opened(environ: dict[str, str], container: bool, platform: str, browser: bool) -> None:
    assert has_browser(environ, container=container, platform=platform) is browser


@pytest.mark.parametrize(
    ("methods", "browser", "chosen", "way"),
    [
        ((KEY, DEVICE, BROWSER), True, BROWSER, "loopback"),
        ((KEY, DEVICE, BROWSER), False, DEVICE, "device"),
        ((KEY, BROWSER), False, BROWSER, "paste"),
        ((KEY, PASTE), True, PASTE, "paste"),
        ((PASTE, DEVICE), True, DEVICE, "device"),
        ((KEY,), True, KEY, "fields"),
        ((KEY,), False, KEY, "fields"),
        ((replace(BROWSER, standing="restricted"), KEY), True, KEY, "fields"),
        ((replace(BROWSER, standing="restricted"),), True, replace(BROWSER, standing="restricted"), "loopback"),
        ((replace(DEVICE, client_id=""), KEY), False, KEY, "fields"),
        ((replace(KEY, id="first"), replace(KEY, id="second")), False, replace(KEY, id="first"), "fields"),
    ],
)
def test_the_way_follows_the_place(
    methods: tuple[AuthMethod, ...], browser: bool, chosen: AuthMethod, way: Way
) -> None:
    choice = choose_method(provider(URL, *methods), browser=browser)
    assert (choice.method, choice.way) == (chosen, way)
    assert choice.open_browser is (browser and way != "fields")


@pytest.mark.parametrize("browser", [True, False])
def test_a_named_method_is_taken_as_it_is(browser: bool) -> None:
    declared = provider(URL, KEY, replace(BROWSER, standing="restricted"), DEVICE)
    choice = choose_method(declared, browser=browser, method="authorization-code")
    assert choice.way == ("loopback" if browser else "paste")
    assert choice.open_browser is browser


def test_an_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        choose_method(provider(URL, KEY, DEVICE), browser=True, method="magic")
    assert caught.value.hint == "use one of: api-key, device"


def test_a_provider_without_logins_needs_none() -> None:
    with pytest.raises(UsageError, match="needs no login"):
        choose_method(provider(URL), browser=True)

"""The tree of errors: a code of its own for each, and the exit status that scripts rely on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from valetkey import errors
from valetkey.errors import ValetkeyError

STATUSES = {
    2: {"UsageError", "ConfigError", "MissingParameter", "InvalidParameter", "UnknownProvider"},
    3: {"NotLoggedIn", "CredentialExpired", "NeedsLogin", "RefreshRejected"},
    4: {"HostsNotAccepted", "NotForThisUse"},
    130: {"LoginCancelled"},
}


def _below(kind: type[ValetkeyError]) -> Iterator[type[ValetkeyError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from _below(each)


ALL = [kind for kind in _below(ValetkeyError) if kind.__module__ == errors.__name__]


def test_each_has_a_code_of_its_own_and_is_promised_by_name() -> None:
    assert len({kind.code for kind in ALL}) == len(ALL)
    assert {kind.__name__ for kind in ALL} == set(errors.__all__)


@pytest.mark.parametrize("kind", ALL)
def test_each_is_in_the_tree_at_the_top_of_its_module(kind: type[ValetkeyError]) -> None:
    assert kind.__name__ in (errors.__doc__ or "").split()


@pytest.mark.parametrize("kind", ALL)
def test_none_is_raised_without_a_hint(kind: type[ValetkeyError]) -> None:
    with pytest.raises(TypeError, match="hint"):
        kind("something happened")  # type: ignore[call-arg]  # that is the point


@pytest.mark.parametrize(("status", "names"), STATUSES.items())
def test_the_exit_status_says_what_to_do(status: int, names: set[str]) -> None:
    assert {kind.__name__ for kind in ALL if kind.exit_status == status} >= names


def test_its_json_form_has_five_keys() -> None:
    error = errors.NotLoggedIn("no credential is stored", hint="run `valetkey login acme`", provider="acme")
    assert error.as_dict() == {
        "code": "not_logged_in",
        "message": "no credential is stored",
        "hint": "run `valetkey login acme`",
        "provider": "acme",
        "retryable": False,
    }

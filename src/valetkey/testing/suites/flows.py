"""What every flow promises, as far as it is the same for all kinds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest

from valetkey.credential import Credential, ExchangedKey, Fields, OAuthToken, Secret, secrets_of
from valetkey.errors import (
    InvalidParameter,
    KeyForbidden,
    KeyRejected,
    MissingParameter,
    PollFailed,
    ProviderFault,
    RefreshNotSupported,
    RefreshRejected,
    ValetkeyError,
    ValidationFailed,
)
from valetkey.flow import AuthFlow, EnterFields, PendingAuthorization

__all__ = ["FlowCase", "FlowSuite"]


@dataclass(frozen=True, kw_only=True)
class FlowCase:
    """A flow, and a server for it that the suite can turn against it.

    `answer` gives what a user would answer to what is pending. `sends` counts the requests that the server got.
    `secrets` are all that the server gives out or takes. `probe` lets it answer the probe with this status, 200 with
    who one is. `renew` lets it grant renewals, and `end` refuse them for good; both are None where nothing is renewed.
    `checked` is what a refusal of the probe becomes where it is always the same.
    """

    flow: AuthFlow
    provider: str
    method: str
    answer: Callable[[PendingAuthorization], Mapping[str, str]]
    sends: Callable[[], int]
    secrets: tuple[str, ...]
    probe: Callable[[int], None]
    renew: Callable[[], None] | None = None
    end: Callable[[], None] | None = None
    checked: type[ValetkeyError] | None = None

    async def logged_in(self) -> Credential:
        """Log in as a user does."""
        pending = await self.flow.initiate()
        return await self.flow.complete(pending, self.answer(pending))


class FlowSuite:
    """Subclass it with a fixture `case`: a FlowCase."""

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def anyio_backend(self) -> str:
        """Run on asyncio, which is all that Valetkey uses."""
        return "asyncio"

    async def test_what_the_user_has_to_do_is_json_without_a_secret(self, case: FlowCase) -> None:
        pending = await case.flow.initiate()
        shown = json.dumps(dataclasses.asdict(pending.action))
        # The state is in the URL that the browser opens; that is what it is for.
        hidden = {value for name, value in pending.private.items() if name != "state"}
        assert not any(value in shown for value in hidden)
        assert not any(value in repr(pending) for value in hidden)
        assert (pending.provider, pending.method) == (case.provider, case.method)

    async def test_a_login_ends_in_a_credential_that_names_its_method(self, case: FlowCase) -> None:
        credential = await case.logged_in()
        assert credential.method == case.method
        assert all(secrets_of(credential).values())
        assert not any(secret in repr(credential) for secret in case.secrets)

    async def test_an_answer_of_another_kind_is_refused(self, case: FlowCase) -> None:
        pending = await case.flow.initiate()
        sent = case.sends()
        with pytest.raises(InvalidParameter) as caught:
            await case.flow.complete(pending, {**case.answer(pending), "something": "else"})
        assert caught.value.hint
        assert case.sends() == sent

    async def test_an_empty_answer_is_missing_something(self, case: FlowCase) -> None:
        pending = await case.flow.initiate()
        if case.answer(pending):
            with pytest.raises(MissingParameter):
                await case.flow.complete(pending, {})

    async def test_a_form_has_nothing_to_poll(self, case: FlowCase) -> None:
        pending = await case.flow.initiate()
        if isinstance(pending.action, EnterFields):
            with pytest.raises(PollFailed) as caught:
                await case.flow.poll(pending)
            assert not caught.value.retryable

    async def test_a_renewal_gives_the_same_kind_with_the_same_parameters(self, case: FlowCase) -> None:
        credential = await case.logged_in()
        if case.renew is None:
            with pytest.raises(RefreshNotSupported):
                await case.flow.refresh(credential)
            return
        case.renew()
        renewed = await case.flow.refresh(credential)
        assert type(renewed) is type(credential)
        assert (renewed.method, renewed.parameters) == (credential.method, credential.parameters)
        assert secrets_of(renewed) != secrets_of(credential)
        old, new = (c.grant if isinstance(c, ExchangedKey) else c for c in (credential, renewed))
        if isinstance(old, OAuthToken) and isinstance(new, OAuthToken):
            # Without its refresh token a login would end with its next renewal.
            assert (new.refresh_token is None) == (old.refresh_token is None)

    async def test_a_login_that_the_provider_ended_is_rejected(self, case: FlowCase) -> None:
        if case.end is None:
            return
        credential = await case.logged_in()
        case.end()
        with pytest.raises(RefreshRejected) as caught:
            await case.flow.refresh(credential)
        assert caught.value.hint == f"run `valetkey login {case.provider} --method {case.method}`"

    async def test_a_credential_of_another_kind_is_not_renewed(self, case: FlowCase) -> None:
        with pytest.raises(RefreshNotSupported):
            await case.flow.refresh(Fields(method=case.method, values={"user": Secret("u")}))

    @pytest.mark.parametrize(
        ("status", "expected"),
        [(401, KeyRejected), (403, KeyForbidden), (500, ProviderFault), (404, ValidationFailed)],
    )
    async def test_each_refusal_of_the_probe_is_an_error_of_its_own(
        self, case: FlowCase, status: int, expected: type[ValetkeyError]
    ) -> None:
        credential = await case.logged_in()
        case.probe(status)
        with pytest.raises(case.checked or expected) as caught:
            await case.flow.validate(credential)
        assert not any(secret in str(caught.value.as_dict()) for secret in case.secrets)

    async def test_a_good_credential_is_good(self, case: FlowCase) -> None:
        credential = await case.logged_in()
        case.probe(200)
        sent = case.sends()
        identity = await case.flow.validate(credential)
        assert case.sends() > sent
        assert not any(secret in repr(identity) for secret in case.secrets)

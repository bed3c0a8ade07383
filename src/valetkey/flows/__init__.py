"""Flows: `flow_for` is the only table of them; beside it what ends a login elsewhere, and what hears the browser."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, assert_never

from valetkey.credential import DEFAULT_ACCOUNT

if TYPE_CHECKING:
    from valetkey.clock import Clock
    from valetkey.credential import Credential, Identity
    from valetkey.errors import ValetkeyError
    from valetkey.flow import AuthFlow
    from valetkey.flows.loopback import Listener
    from valetkey.http import HttpClient
    from valetkey.provider import AuthMethod, Loopback, Provider

__all__ = ["claimed", "flow_for", "listen", "package_flows", "package_problems", "revoke"]


def flow_for(
    provider: Provider,
    method: AuthMethod,
    *,
    parameters: Mapping[str, str],
    http: HttpClient,
    clock: Clock,
    environ: Mapping[str, str],
    account: str = DEFAULT_ACCOUNT,
) -> AuthFlow:
    """Give the flow of the method's kind. Each is imported only when it is wanted: `valetkey token` asks for none.

    A package's flow is loaded when it is first used, and tells then what is wrong with it.
    """
    from valetkey.flows.context import Context

    context = Context(
        provider=provider,
        method=method,
        parameters=dict(parameters),
        http=http,
        clock=clock,
        environ=environ,
        account=account,
    )
    match method.built_in_kind:
        case "api-key":
            from valetkey.flows.api_key import ApiKeyFlow

            return ApiKeyFlow(context)
        case "device":
            from valetkey.flows.device import DeviceFlow

            return DeviceFlow(context)
        case "device-exchange":
            from valetkey.flows.exchange import DeviceExchangeFlow

            return DeviceExchangeFlow(context)
        case "authorization-code":
            from valetkey.flows.authorization_code import AuthorizationCodeFlow

            return AuthorizationCodeFlow(context)
        case "cloud":
            from valetkey.flows.cloud import CloudFlow

            return CloudFlow(context)
        case "custom":
            from valetkey.flows.custom import CustomFlow

            return CustomFlow(context)
        case None:
            from valetkey.flows.plugins import PackageFlow

            return PackageFlow(context)
        case _:
            assert_never(method.built_in_kind)


def package_flows() -> list[tuple[str, str]]:
    """Give kind and package of the flows that packages ship under `valetkey.flows`. None is loaded."""
    from valetkey.flows import plugins

    return plugins.BROUGHT.installed()


def package_problems(providers: Iterable[Provider]) -> list[tuple[str, ValetkeyError]]:
    """Give what is wrong with packages' flows: (kind, error). Those that these providers name are loaded."""
    from valetkey.flows import plugins

    return plugins.problems(providers)


def claimed(method: AuthMethod, credential: Credential) -> Identity:
    """Read account, e-mail and plan from the tokens' claims. Not verified: for show and for headers only."""
    from valetkey.flows import probe

    return probe.claimed(method, credential)


def listen(loopback: Loopback) -> AbstractAsyncContextManager[Listener]:
    """Open the port that hears the browser's answer, until the block is left. Raises: PortsBusy."""
    from valetkey.flows import loopback as ear

    return ear.listen(loopback)


async def revoke(provider: Provider, method: AuthMethod, credential: Credential, http: HttpClient) -> bool:
    """Tell the provider that the login is over (RFC 7009): True when it said that it is."""
    from valetkey.flows import token_endpoint

    return await token_endpoint.revoke(provider, method, credential, http)

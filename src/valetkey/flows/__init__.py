"""Flows: `flow_for` is the only table of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, assert_never

if TYPE_CHECKING:
    from valetkey.clock import Clock
    from valetkey.flow import AuthFlow
    from valetkey.http import HttpClient
    from valetkey.provider import AuthMethod, Provider

__all__ = ["flow_for"]


def flow_for(
    provider: Provider,
    method: AuthMethod,
    *,
    parameters: Mapping[str, str],
    http: HttpClient,
    clock: Clock,
    environ: Mapping[str, str],
) -> AuthFlow:
    """Give the flow of the method's kind. Each is imported only when it is wanted: `valetkey token` asks for none."""
    from valetkey.flows.context import Context

    context = Context(
        provider=provider, method=method, parameters=dict(parameters), http=http, clock=clock, environ=environ
    )
    match method.kind:
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
        case _:
            assert_never(method.kind)

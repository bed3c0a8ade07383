"""Log in once to every AI provider, and hand tools a fresh credential.

    import httpx2, valetkey

    valetkey.token("openai")                                     # a fresh secret
    httpx2.Client(auth=valetkey.auth("anthropic@work"))          # renews by itself, and once on a 401
    with valetkey.environment("openai"): ...                     # sets the variables, restores exactly
    valetkey.gateway("openai")                                   # base_url and a valet key: never the credential

Nothing is imported before it is used: `import valetkey` takes no time worth measuring.
"""

import sys

TYPE_CHECKING = False  # as in typing, which costs milliseconds; `valetkey token` passes here
if TYPE_CHECKING:
    from types import ModuleType

    from valetkey.access import Access as Access
    from valetkey.account_state import AccountState as AccountState
    from valetkey.broker import Broker as Broker
    from valetkey.credential import CredentialRef as CredentialRef
    from valetkey.credential import Health as Health
    from valetkey.credential import Identity as Identity
    from valetkey.credential import Secret as Secret
    from valetkey.dialect import Model as Model
    from valetkey.errors import CredentialError as CredentialError
    from valetkey.errors import GatewayError as GatewayError
    from valetkey.errors import LoginError as LoginError
    from valetkey.errors import NeedsLogin as NeedsLogin
    from valetkey.errors import NotForThisUse as NotForThisUse
    from valetkey.errors import NotLoggedIn as NotLoggedIn
    from valetkey.errors import ProviderError as ProviderError
    from valetkey.errors import StoreError as StoreError
    from valetkey.errors import TransportError as TransportError
    from valetkey.errors import UnknownProvider as UnknownProvider
    from valetkey.errors import ValetkeyError as ValetkeyError
    from valetkey.flow import EnterFields as EnterFields
    from valetkey.flow import EnterUserCode as EnterUserCode
    from valetkey.flow import OpenBrowser as OpenBrowser
    from valetkey.flow import PendingAuthorization as PendingAuthorization
    from valetkey.gateway_access import GatewayAccess as GatewayAccess
    from valetkey.provider import Provider as Provider
    from valetkey.sdk import LoggedOut as LoggedOut
    from valetkey.sdk import accounts as accounts
    from valetkey.sdk import add_provider as add_provider
    from valetkey.sdk import auth as auth
    from valetkey.sdk import begin_login as begin_login
    from valetkey.sdk import check as check
    from valetkey.sdk import complete_login as complete_login
    from valetkey.sdk import environment as environment
    from valetkey.sdk import gateway as gateway
    from valetkey.sdk import logout as logout
    from valetkey.sdk import models as models
    from valetkey.sdk import open_broker as open_broker
    from valetkey.sdk import poll_login as poll_login
    from valetkey.sdk import providers as providers
    from valetkey.sdk import remove_provider as remove_provider
    from valetkey.sdk import token as token
    from valetkey.store import Account as Account

    __version__: str
else:
    ModuleType = type(sys)

__all__ = [
    "Access",
    "Account",
    "AccountState",
    "Broker",
    "CredentialError",
    "CredentialRef",
    "EnterFields",
    "EnterUserCode",
    "GatewayAccess",
    "GatewayError",
    "Health",
    "Identity",
    "LoggedOut",
    "LoginError",
    "Model",
    "NeedsLogin",
    "NotForThisUse",
    "NotLoggedIn",
    "OpenBrowser",
    "PendingAuthorization",
    "Provider",
    "ProviderError",
    "Secret",
    "StoreError",
    "TransportError",
    "UnknownProvider",
    "ValetkeyError",
    "__version__",
    "accounts",
    "add_provider",
    "auth",
    "begin_login",
    "check",
    "complete_login",
    "environment",
    "gateway",
    "logout",
    "models",
    "open_broker",
    "poll_login",
    "providers",
    "remove_provider",
    "token",
]

# Where each name lives; sdk has the rest.
_PLACES = {
    "access": ("Access",),
    "account_state": ("AccountState",),
    "broker": ("Broker",),
    "credential": ("CredentialRef", "Health", "Identity", "Secret"),
    "dialect": ("Model",),
    "errors": (
        "CredentialError",
        "GatewayError",
        "LoginError",
        "NeedsLogin",
        "NotForThisUse",
        "NotLoggedIn",
        "ProviderError",
        "StoreError",
        "TransportError",
        "UnknownProvider",
        "ValetkeyError",
    ),
    "gateway_access": ("GatewayAccess",),
    "flow": ("EnterFields", "EnterUserCode", "OpenBrowser", "PendingAuthorization"),
    "provider": ("Provider",),
    "store": ("Account",),
}


if not TYPE_CHECKING:  # a type checker would believe that every name is there

    def __getattr__(name: str) -> object:
        """Import what is asked for."""
        if name == "__version__":
            from importlib.metadata import version

            return version("valetkey")
        if name not in __all__:
            raise AttributeError(f"module 'valetkey' has no attribute {name!r}")
        import importlib

        place = next((module for module, names in _PLACES.items() if name in names), "sdk")
        return getattr(importlib.import_module(f"valetkey.{place}"), name)


class _Providers(ModuleType):
    """The package `valetkey.providers`, which can be called as well."""

    def __call__(self, *, custom: bool = False, broker: "Broker | None" = None) -> "list[Provider]":
        from valetkey import sdk

        return sdk.providers(custom=custom, broker=broker)


class _Gateway(ModuleType):
    """The package `valetkey.gateway`, which can be called as well."""

    def __call__(self, name: str, *, broker: "Broker | None" = None) -> "GatewayAccess":
        from valetkey import sdk

        return sdk.gateway(name, broker=broker)


_CALLED: "dict[str, type[ModuleType]]" = {"providers": _Providers, "gateway": _Gateway}


class _Package(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        # Once it is imported, the package of this name stands where the function is promised.
        if name in _CALLED and isinstance(value, ModuleType):
            value.__class__ = _CALLED[name]
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

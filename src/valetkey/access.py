"""What a caller gets: a credential, where it may go, where it came from, and what it may be used for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from valetkey import inject
from valetkey.credential import ApiKey, Credential, CredentialRef, Fields, Identity, Secret, secrets_of
from valetkey.errors import HostsNotAccepted, InvalidParameter, NotForThisUse, NotLoggedIn
from valetkey.provider import AuthMethod, Provider

__all__ = [
    "Access",
    "Use",
    "check_use",
    "credential_in",
    "defaults_of",
    "from_environment",
    "sole_secret",
    "without_credential",
]

Use = Literal["token", "exec", "helper", "ask", "chat", "auth", "gateway", "run", "probe", "renewal"]
# What hands the credential to nobody.
_NO_USES = frozenset({"probe", "renewal"})
# Restricted logins serve none of these (docs/login.md); one that names its agents serves them alone.
_REFUSED_TO_RESTRICTED = frozenset({"token", "exec", "helper", "ask", "auth", "gateway"})


@dataclass(frozen=True, kw_only=True)
class Access:
    """A credential that may be used now, and where; None means that the server needs none.

    `variable` is the environment variable that it came from, if it did.
    """

    ref: CredentialRef
    provider: Provider
    method: AuthMethod
    credential: Credential | None
    source: Literal["stored", "environment", "none"]
    base_url: str
    hosts: tuple[str, ...]
    identity: Identity = Identity()
    variable: str | None = None

    def headers(self, url: str, headers: Mapping[str, str]) -> dict[str, str]:
        """Give `headers` with the credential put in. Raises: HostsNotAccepted as `check_place` does."""
        merged = {**self.provider.api.headers, **headers}
        if self.credential is None:
            return {name.lower(): value for name, value in merged.items()}
        self.check_place(url)
        return inject.headers_for(
            self.credential,
            method=self.method,
            url=url,
            hosts=self.hosts,
            headers=merged,
            account_id=self.identity.account_id,
        )

    def placed(self, url: str) -> str:
        """Give the URL with what the credential puts into its query. Raises: HostsNotAccepted as `check_place` does."""
        if self.credential is None:
            return url
        return inject.placed(
            self.credential, method=self.method, url=url, hosts=self.hosts, account_id=self.identity.account_id
        )

    def steps(self, url: str) -> list[inject.Step]:
        """Give what the credential, and what its provider always wants, does to the headers of a request to `url`.

        Raises: HostsNotAccepted as `check_place` does.
        """
        always = [
            inject.Step(kind="if absent", name=name.lower(), value=value)
            for name, value in self.provider.api.headers.items()
        ]
        if self.credential is None:
            return always
        self.check_place(url)
        return [
            *always,
            *inject.steps_for(
                self.credential,
                method=self.method,
                url=url,
                hosts=self.hosts,
                account_id=self.identity.account_id,
            ),
        ]

    def check_place(self, url: str) -> None:
        """See that the credential may go there. Raises: HostsNotAccepted, also for http where the login has https."""
        host = inject.check_place(url, self.hosts)
        if url.startswith("http:") and self.base_url.startswith("https:"):
            raise HostsNotAccepted(
                f"this login is for https, and may not be used at {host} over plain http", hint=f"use https://{host}"
            )

    def url(self, path: str) -> str:
        """Join a path of the API to this account's base URL."""
        return inject.join(self.base_url, path)


def check_use(ref: CredentialRef, method: AuthMethod, use: Use, *, restricted: bool, agent: str | None = None) -> None:
    """Refuse a restricted login the uses that it may not serve. Raises: NotForThisUse.

    `agent` is the client that a run was started for, None for a bare command, which is refused as `exec` is.
    """
    if not restricted or use in _NO_USES:
        return
    if method.for_agents:
        if use == "run" and agent in method.for_agents:
            return
        agents = ", ".join(method.for_agents)
        raise NotForThisUse(
            f"{method.label or method.id} of {ref.provider} may serve only its provider's own client ({agents})",
            provider=ref.provider,
            hint=f"log in with an API key: `valetkey login {ref.provider} --account api --method api-key`",
        )
    if use in _REFUSED_TO_RESTRICTED or (use == "run" and agent is None):
        raise NotForThisUse(
            f"{method.label or method.id} of {ref.provider} is a restricted login and may not serve `{use}`",
            provider=ref.provider,
            hint=f"log in with an API key: `valetkey login {ref.provider} --account api`",
        )


def sole_secret(access: Access) -> Secret:
    """Give the one secret that a tool can be told in one line. Raises: NotLoggedIn, NotForThisUse."""
    if access.credential is None:
        raise NotLoggedIn(
            f"{access.ref.provider} is used without a key",
            provider=access.ref.provider,
            hint=f"`valetkey login {access.ref.provider}` stores one if your server wants it",
        )
    secrets = secrets_of(access.credential)
    if len(secrets) != 1:
        raise NotForThisUse(
            f"{access.ref} has {len(secrets)} named secrets, not one",
            provider=access.ref.provider,
            hint=f"use `valetkey exec -p {access.ref} -- CMD` or `valetkey env {access.ref}`",
        )
    return next(iter(secrets.values()))


def check_forms(method: AuthMethod, parameters: Mapping[str, str]) -> None:
    """See that what came from the environment has the declared forms: it decides where the credential goes.

    Raises: InvalidParameter, naming the variable.
    """
    for parameter in method.parameters:
        value = parameters.get(parameter.key)
        if not value:
            continue
        fits = parameter.pattern is None or re.fullmatch(parameter.pattern, value) is not None
        if not fits or not value.isprintable() or (parameter.options and value not in parameter.options):
            raise InvalidParameter(
                f"{' or '.join(parameter.environment) or parameter.key} is not of the form that the login wants",
                hint=f"correct it: {', '.join(parameter.options) or parameter.pattern or 'one line of text'}",
            )


def defaults_of(environ: Mapping[str, str], method: AuthMethod) -> dict[str, str] | None:
    """Give the parameters from the environment and the declared defaults; None when a required one has neither."""
    values: dict[str, str] = {}
    for parameter in method.parameters:
        value = next((environ[n] for n in parameter.environment if environ.get(n)), parameter.default)
        if value is not None:
            values[parameter.key] = value
        elif parameter.required:
            return None
    return values


def credential_in(environ: Mapping[str, str], method: AuthMethod) -> Credential | None:
    """Give the credential that the environment holds for this way to log in."""
    parameters = defaults_of(environ, method)
    if parameters is None:
        return None
    if method.secrets:
        found = {
            s.key: Secret(value)
            for s in method.secrets
            if (value := next((environ[n] for n in s.environment if environ.get(n)), None)) is not None
        }
        if any(s.required and s.key not in found for s in method.secrets):
            return None
        return Fields(method=method.id, values=found, parameters=parameters)
    value = next((environ[n] for n in method.environment if environ.get(n)), None)
    return None if value is None else ApiKey(method=method.id, key=Secret(value), parameters=parameters)


def from_environment(environ: Mapping[str, str], ref: CredentialRef, provider: Provider) -> Access | None:
    """Give what the environment holds for `provider`. Raises: InvalidParameter."""
    for method in provider.auth:
        credential = credential_in(environ, method)
        if credential is None:
            continue
        check_forms(method, credential.parameters)
        base_url, hosts = inject.reach(provider, method, credential.parameters)
        return Access(
            ref=ref,
            provider=provider,
            method=method,
            credential=credential,
            source="environment",
            base_url=base_url,
            hosts=hosts,
            variable=next((n for n in method.environment if environ.get(n)), None),
        )
    return None


def without_credential(environ: Mapping[str, str], ref: CredentialRef, provider: Provider) -> Access | None:
    """Give the access to a server that needs no credential. Raises: InvalidParameter."""
    for method in provider.auth:
        if method.optional:
            parameters = defaults_of(environ, method) or {}
            check_forms(method, parameters)
            base_url, hosts = inject.reach(provider, method, parameters)
            return Access(
                ref=ref,
                provider=provider,
                method=method,
                credential=None,
                source="none",
                base_url=base_url,
                hosts=hosts,
            )
    return None

"""What an account holds: secrets, the Credential union, and who and how well it is."""

from __future__ import annotations

import enum
import hmac
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import ClassVar, NoReturn, assert_never

from valetkey.errors import InvalidName

__all__ = [
    "DEFAULT_ACCOUNT",
    "Ambient",
    "ApiKey",
    "Credential",
    "CredentialRef",
    "ExchangedKey",
    "Fields",
    "Health",
    "Identity",
    "OAuthToken",
    "Secret",
    "expires_at_of",
    "issued_at_of",
    "login_command",
    "secrets_of",
]

# One form for both names: they become columns, associated data, lock names and URL segments.
_PROVIDER = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?\Z")
_ACCOUNT = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._+-]{0,126}[A-Za-z0-9_])?\Z")
DEFAULT_ACCOUNT = "default"


class Secret:
    """A string that does not show itself. `reveal()` marks each use; grepping for it is the audit."""

    __slots__ = ("_value",)
    # Told of each secret that is made: the log, so that it can take them out of whatever it writes.
    heard_by: ClassVar[Callable[[str], None] | None] = None

    def __init__(self, value: str) -> None:
        self._value = value
        if Secret.heard_by is not None:
            Secret.heard_by(value)

    def reveal(self) -> str:
        """Give the value."""
        return self._value

    @property
    def last_four(self) -> str:
        """Give the end of a long secret, for a person to tell two apart; of a short one nothing."""
        return self._value[-4:] if len(self._value) >= 16 else ""

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        mine, theirs = (secret._value.encode("utf-8", "surrogatepass") for secret in (self, other))
        return hmac.compare_digest(mine, theirs)

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled")


@dataclass(frozen=True, kw_only=True, order=True)
class CredentialRef:
    """One account at one provider, written `provider@account`."""

    provider: str
    account: str = DEFAULT_ACCOUNT

    def __post_init__(self) -> None:
        """Refuse what could leave its folder, its column or its URL segment."""
        if not _PROVIDER.match(self.provider):
            raise InvalidName(
                f"{self.provider[:40]!r} is not a provider id",
                hint="use lower-case letters, digits and hyphens, at most 64",
            )
        if not _ACCOUNT.match(self.account) or ".." in self.account:
            raise InvalidName(
                f"{self.account[:40]!r} is not an account name",
                hint="use letters, digits and . _ + - inside, at most 128",
                provider=self.provider,
            )

    def __str__(self) -> str:
        return f"{self.provider}@{self.account}"


def login_command(ref: CredentialRef, *, method: str | None = None) -> str:
    """Give the command that logs this account in, for hints."""
    account = "" if ref.account == DEFAULT_ACCOUNT else f" --account {ref.account}"
    return f"valetkey login {ref.provider}{account}" + (f" --method {method}" if method else "")


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """A key that the user gave or that a login created; it has no end that we know of."""

    method: str
    key: Secret
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class OAuthToken:
    """The answer of a token endpoint (RFC 6749 section 5.1)."""

    method: str
    access_token: Secret
    issued_at: datetime
    refresh_token: Secret | None = None
    expires_at: datetime | None = None
    token_type: str = "Bearer"
    scope: tuple[str, ...] = ()
    id_token: Secret | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ExchangedKey:
    """A short-lived key, and the OAuth token that buys the next one."""

    method: str
    key: Secret
    grant: OAuthToken
    issued_at: datetime
    expires_at: datetime | None = None
    refresh_at: datetime | None = None
    base_url: str | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Several named secrets: static AWS keys, user and password."""

    method: str
    values: Mapping[str, Secret]
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Ambient:
    """A pointer to a source that is read at use; `values` is what it last gave and is never stored."""

    method: str
    values: Mapping[str, Secret] = field(default_factory=dict, compare=False)
    issued_at: datetime | None = field(default=None, compare=False)
    expires_at: datetime | None = field(default=None, compare=False)
    parameters: Mapping[str, str] = field(default_factory=dict)

    def pointer(self) -> Ambient:
        """Give what may be stored: the same without what the source gave."""
        return replace(self, values={}, issued_at=None, expires_at=None)


Credential = ApiKey | OAuthToken | ExchangedKey | Fields | Ambient


class Health(enum.StrEnum):
    """How an account is; one value everywhere."""

    OK = "ok"
    EXPIRING = "expiring"
    EXPIRED = "expired"
    UNCERTAIN = "uncertain"
    NEEDS_LOGIN = "needs-login"
    UNREACHABLE = "unreachable"
    LOCKED = "locked"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who an account is at its provider, as far as the provider says. Nothing in it is secret."""

    account_id: str | None = None
    name: str | None = None
    email: str | None = None
    plan: str | None = None


def secrets_of(credential: Credential) -> dict[str, Secret]:
    """Give the secrets under the names that `inject` and `exports` templates use."""
    match credential:
        case ApiKey() | ExchangedKey():
            return {"key": credential.key}
        case OAuthToken():
            return {"access_token": credential.access_token}
        case Fields() | Ambient():
            return dict(credential.values)
        case _:
            assert_never(credential)


def expires_at_of(credential: Credential) -> datetime | None:
    """Give the end of what would be sent now; None where it has none."""
    match credential:
        case OAuthToken() | ExchangedKey() | Ambient():
            return credential.expires_at
        case ApiKey() | Fields():
            return None
        case _:
            assert_never(credential)


def issued_at_of(credential: Credential) -> datetime | None:
    """Give when it was received; None where it has no life to measure."""
    match credential:
        case OAuthToken() | ExchangedKey() | Ambient():
            return credential.issued_at
        case ApiKey() | Fields():
            return None
        case _:
            assert_never(credential)

"""Everything that can go wrong, as one tree.

    ValetkeyError
      UsageError                     wrong words on the command line or in a call
      ConfigError                    config.toml or the environment
      ProviderError                  a declaration: UnknownProvider InvalidProvider ProviderExists BuiltInProvider
        InvalidBaseUrl ProviderCheckFailed UnknownModel RequestRefused
      LoginError                     a flow: InitiationFailed LoginTimeout LoginExpired LoginDenied LoginCancelled
        PollFailed CompletionFailed MissingParameter InvalidParameter RestrictedLogin PortsBusy
        ValidationFailed             KeyRejected KeyForbidden (what the probe said)
      CredentialError                NotLoggedIn CredentialExpired NeedsLogin RefreshRejected RefreshFailed RefreshBusy
        RefreshNotSupported SourceFailed HostsNotAccepted NotForThisUse
        BaseCredentialRefused RoleDenied RoleInvalid IssuerUnavailable (short-lived keys for a run)
      TransportError                 ConnectTimeout NameNotResolved TlsFailed Unreachable ProviderFault UnclearAnswer
      StoreError                     WrongMode StoreLocked WrongKey RecordDamaged StoreTooNew ForeignStore
        StoreUnwritable GenerationConflict InvalidName BackupFailed
      GatewayError                   GatewayDown GatewayFailed UnknownKey UnknownApproval AuthorityBroken
        AddressRefused               a name that resolves to an address that gets no request
        TraceUnreadable TraceTooNew  the file of past requests
      RunError                       SandboxUnavailable SandboxFailed WorkspaceRefused UnknownRun RunGoesOn
        NoSuchProgram AgentNotInstalled BrokenAgent UnknownSession HomeUnusable EndpointUnavailable McpServerUnusable
      AuditError                     AuditUnwritable AuditBroken
      ImportFailed                   another tool's file of logins
      SetupRefused                   another tool's file of settings

Each says what happened, to which provider, and what to do next. `code` is stable and the same in
the command line, the API and the gateway; `retryable` says whether the same call may succeed later;
`exit_status` is what the command line ends with.
"""

from __future__ import annotations

__all__ = [
    "AddressRefused",
    "AgentNotInstalled",
    "AuditBroken",
    "AuditError",
    "AuditUnwritable",
    "AuthorityBroken",
    "BackupFailed",
    "BaseCredentialRefused",
    "BrokenAgent",
    "BuiltInProvider",
    "CompletionFailed",
    "ConfigError",
    "ConnectTimeout",
    "CredentialError",
    "CredentialExpired",
    "EndpointUnavailable",
    "ForeignStore",
    "GatewayDown",
    "GatewayError",
    "GatewayFailed",
    "GenerationConflict",
    "HomeUnusable",
    "HostsNotAccepted",
    "ImportFailed",
    "InitiationFailed",
    "InvalidBaseUrl",
    "InvalidName",
    "InvalidParameter",
    "InvalidProvider",
    "IssuerUnavailable",
    "KeyForbidden",
    "KeyRejected",
    "LoginCancelled",
    "LoginDenied",
    "LoginError",
    "LoginExpired",
    "LoginTimeout",
    "McpServerUnusable",
    "MissingParameter",
    "NameNotResolved",
    "NeedsLogin",
    "NoSuchProgram",
    "NotForThisUse",
    "NotLoggedIn",
    "PollFailed",
    "PortsBusy",
    "ProviderCheckFailed",
    "ProviderError",
    "ProviderExists",
    "ProviderFault",
    "RecordDamaged",
    "RefreshBusy",
    "RefreshFailed",
    "RefreshNotSupported",
    "RefreshRejected",
    "RequestRefused",
    "RestrictedLogin",
    "RoleDenied",
    "RoleInvalid",
    "RunError",
    "RunGoesOn",
    "SandboxFailed",
    "SandboxUnavailable",
    "SetupRefused",
    "SourceFailed",
    "StoreError",
    "StoreLocked",
    "StoreTooNew",
    "StoreUnwritable",
    "TlsFailed",
    "TraceTooNew",
    "TraceUnreadable",
    "TransportError",
    "UnclearAnswer",
    "UnknownApproval",
    "UnknownKey",
    "UnknownModel",
    "UnknownProvider",
    "UnknownRun",
    "UnknownSession",
    "Unreachable",
    "UsageError",
    "ValetkeyError",
    "ValidationFailed",
    "WorkspaceRefused",
    "WrongKey",
    "WrongMode",
]


class ValetkeyError(Exception):
    """Root of the tree: a message (lower case, no final period, no secret) and a hint (an imperative)."""

    code = "error"
    retryable = False
    exit_status = 1

    def __init__(self, message: str, *, hint: str, provider: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.provider = provider

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Derive the code from the class's name, `NotLoggedIn` to `not_logged_in`, once."""
        super().__init_subclass__(**kwargs)
        if "code" not in cls.__dict__:
            cls.code = "".join(f"_{c.lower()}" if c.isupper() else c for c in cls.__name__).lstrip("_")

    def as_dict(self) -> dict[str, object]:
        """Give the JSON form that the command line, the API and the gateway share."""
        return {
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "provider": self.provider,
            "retryable": self.retryable,
        }


class UsageError(ValetkeyError):
    """The words of a command or the arguments of a call are wrong."""

    exit_status = 2


class ConfigError(ValetkeyError):
    """config.toml or an environment variable cannot be used; the message names file, line and key."""

    exit_status = 2


# --- providers -------------------------------------------------------------------------------


class ProviderError(ValetkeyError):
    """A provider's declaration."""


class UnknownProvider(ProviderError):
    """No provider has this id; the hint names the nearest ones."""

    exit_status = 2


class InvalidProvider(ProviderError):
    """A declaration cannot be read; the message names file, key and what is wrong."""


class ProviderExists(ProviderError):
    """The id is taken."""

    exit_status = 2


class BuiltInProvider(ProviderError):
    """A built-in provider can be neither removed nor replaced without `override = true`."""

    exit_status = 2


class UnknownModel(ProviderError):
    """The provider has no model of this name, or the name says no provider."""

    exit_status = 2


class RequestRefused(ProviderError):
    """The provider did not take the request: 400 and the other 4xx that no login mends."""


class InvalidBaseUrl(ProviderError):
    """A base URL that cannot be used, or not without an explicit yes."""

    exit_status = 2


class ProviderCheckFailed(ProviderError):
    """The server of a custom provider did not pass its health check."""


# --- logins ----------------------------------------------------------------------------------


class LoginError(ValetkeyError):
    """A login did not end in a credential. Nothing was stored."""


class InitiationFailed(LoginError):
    """The server refused to begin the login."""


class LoginTimeout(LoginError):
    """Our own time limit (`--timeout`) ran out before the user had finished."""

    retryable = True


class LoginExpired(LoginError):
    """The server's time limit ran out: expired_token (RFC 8628 section 3.5)."""

    retryable = True


class LoginDenied(LoginError):
    """The user or the server said no: access_denied."""


class LoginCancelled(LoginError):
    """The user stopped the login."""

    exit_status = 130


class PollFailed(LoginError):
    """This kind of login cannot be polled, or the server's answer ended it."""


class CompletionFailed(LoginError):
    """The code could not be turned into a credential."""


class MissingParameter(LoginError):
    """A declared parameter has neither a value nor a default."""

    exit_status = 2


class InvalidParameter(LoginError):
    """A value is not of the declared form, or nothing declares it."""

    exit_status = 2


class RestrictedLogin(LoginError):
    """The provider forbids this login to third-party tools; it needs an explicit yes."""


class PortsBusy(LoginError):
    """Every port that the provider would redirect to is taken; pasting the address still works."""


class ValidationFailed(LoginError):
    """The provider did not accept the credential, or could not be asked."""


class KeyRejected(ValidationFailed):
    """The probe answered 401."""


class KeyForbidden(ValidationFailed):
    """The probe answered 403: the credential is known and may not do this."""


# --- credentials -----------------------------------------------------------------------------


class CredentialError(ValetkeyError):
    """A credential that cannot be had."""


class NotLoggedIn(CredentialError):
    """No credential is stored for the account, and none is in the environment.

    `accounts` are those that a login each would help, where more than one was asked for.
    """

    exit_status = 3

    def __init__(self, message: str, *, hint: str, provider: str | None = None, accounts: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint, provider=provider)
        self.accounts = accounts


class CredentialExpired(CredentialError):
    """The credential is past its end and cannot be renewed."""

    exit_status = 3


class NeedsLogin(CredentialError):
    """The provider has ended the login; only a new one helps."""

    exit_status = 3


class RefreshRejected(CredentialError):
    """invalid_grant (RFC 6749 section 5.2): the refresh token is dead; only a new login helps."""

    exit_status = 3


class RefreshFailed(CredentialError):
    """The renewal did not get through: network, 429 or 5xx. The old token is kept.

    `retry_after` is the server's wish in seconds, where it gave one.
    """

    retryable = True

    def __init__(
        self, message: str, *, hint: str, provider: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message, hint=hint, provider=provider)
        self.retry_after = retry_after


class RefreshBusy(CredentialError):
    """Another process holds the renewal of this account and did not finish in time."""

    retryable = True


class RefreshNotSupported(CredentialError):
    """A credential of this kind has no renewal."""


class SourceFailed(CredentialError):
    """An ambient source (a command, a file, a profile) gave no credential."""

    retryable = True


class HostsNotAccepted(CredentialError):
    """The declaration now sends the credential to hosts that were not there at login."""

    exit_status = 4


class NotForThisUse(CredentialError):
    """A restricted login is asked for a use that it may not serve."""

    exit_status = 4


class BaseCredentialRefused(CredentialError):
    """What short-lived keys are asked for with is missing, expired or refused; a new login helps."""

    exit_status = 3


class RoleDenied(CredentialError):
    """The account's credential may not take the role that it names."""

    exit_status = 4


class RoleInvalid(CredentialError):
    """The role or what is asked with it (duration, region) is not taken: the account's parameters are wrong."""


class IssuerUnavailable(CredentialError):
    """Who issues short-lived keys is not reached, or wants fewer calls."""

    retryable = True


# --- what the outside answered ---------------------------------------------------------------


class TransportError(ValetkeyError):
    """A request that got no usable answer. `sent` is False where it is known that the server never had it."""

    retryable = True

    def __init__(self, message: str, *, hint: str, provider: str | None = None, sent: bool = True) -> None:
        super().__init__(message, hint=hint, provider=provider)
        self.sent = sent


class ConnectTimeout(TransportError):
    """No answer within the time limit."""


class NameNotResolved(TransportError):
    """The host's name has no address."""


class TlsFailed(TransportError):
    """The server's certificate was not accepted, or the handshake failed."""

    retryable = False


class Unreachable(TransportError):
    """Connection refused, reset, or no route."""


class ProviderFault(TransportError):
    """The server answered 429 or 5xx."""


class UnclearAnswer(TransportError):
    """The answer is not what the protocol says: not JSON, too large, a redirect, empty."""

    retryable = False


# --- the store -------------------------------------------------------------------------------


class StoreError(ValetkeyError):
    """The store cannot do what was asked. What cannot be read is never overwritten."""


class WrongMode(StoreError):
    """A file or folder is open to others; the hint is the command that mends it."""


class StoreLocked(StoreError):
    """The key that opens the store is not to be had now (keychain locked, no passphrase)."""


class WrongKey(StoreError):
    """The key source gave a key that does not open this store."""


class RecordDamaged(StoreError):
    """A record does not pass its integrity check."""


class StoreTooNew(StoreError):
    """The database was written by a newer Valetkey."""


class ForeignStore(StoreError):
    """The file is not a Valetkey database, or is damaged."""


class StoreUnwritable(StoreError):
    """Read-only or full disk, or another process holds the database too long."""

    retryable = True


class GenerationConflict(StoreError):
    """Compare-and-swap lost: somebody else saved first."""

    retryable = True


class InvalidName(StoreError):
    """A provider id or an account name of a form that is not allowed."""

    exit_status = 2


class BackupFailed(StoreError):
    """A backup could not be written, read or put back."""


# --- the gateway -----------------------------------------------------------------------------


class GatewayError(ValetkeyError):
    """The gateway, its keys or its certificates cannot do what was asked."""


class GatewayDown(GatewayError):
    """No gateway runs on this VALETKEY_HOME, or it does not answer."""

    retryable = True


class GatewayFailed(GatewayError):
    """The gateway could not be started or stopped."""


class UnknownKey(GatewayError):
    """There is no valet key of this id or name."""


class UnknownApproval(GatewayError):
    """No request of this id waits for a decision (any more)."""


class TraceUnreadable(GatewayError):
    """The file of the gateway's requests is damaged, or cannot be read."""


class TraceTooNew(TraceUnreadable):
    """The file of the gateway's requests was written by a newer Valetkey."""


class AuthorityBroken(GatewayError):
    """The certificate authority's files are missing, damaged or open to others."""


class AddressRefused(GatewayError):
    """A name resolves to loopback, a private network or a metadata service, and no login is for that."""

    exit_status = 4


# --- runs ------------------------------------------------------------------------------------


class RunError(ValetkeyError):
    """A run cannot be started, found or changed."""


class UnknownRun(RunError):
    """There is no run of this id, or more than one begins with it."""


class RunGoesOn(RunError):
    """A run that goes on cannot be removed, nor another one begun in its home."""


class NoSuchProgram(RunError):
    """The command of a run is no program that its sandbox has."""

    exit_status = 127  # what a shell says


class AgentNotInstalled(RunError):
    """An agent's program, or what it needs to run, is not on this machine; the hint says how to install it."""


class BrokenAgent(RunError):
    """An agent that a package brings cannot be loaded."""


class UnknownSession(RunError):
    """No run of this agent has this session, more than one begins with it, or a run left none."""


class HomeUnusable(RunError):
    """In the home of an earlier run something lies where the agent's own file belongs."""


class EndpointUnavailable(RunError):
    """An account that is served by an endpoint cannot be: a package or a parameter is missing. The hint names it."""


class McpServerUnusable(RunError):
    """An agent cannot speak to an MCP server that its run would have."""


class SandboxUnavailable(RunError):
    """This machine lacks what the sandbox needs, or forbids it; the hint is the command that mends it."""


class SandboxFailed(RunError):
    """The sandbox did not come up; the message has its own words."""


class WorkspaceRefused(RunError):
    """A folder is not given to a sandbox: it holds credentials or sockets, or belongs to root or the system."""

    exit_status = 4


# --- the audit -------------------------------------------------------------------------------


class AuditError(ValetkeyError):
    """The record of what was done."""


class AuditUnwritable(AuditError):
    """What is about to be done cannot be recorded, so it is not done."""

    retryable = True


class AuditBroken(AuditError):
    """The chain is not as it was written; `seq` is the number of the first entry that shows it."""

    def __init__(self, message: str, *, hint: str, provider: str | None = None, seq: int = 0) -> None:
        super().__init__(message, hint=hint, provider=provider)
        self.seq = seq

    def as_dict(self) -> dict[str, object]:
        """Give the JSON form, with the entry's number."""
        return {**super().as_dict(), "seq": self.seq}


# --- imports ---------------------------------------------------------------------------------


class ImportFailed(ValetkeyError):
    """Another tool's file of logins cannot be read, or is not that tool's. It is left as it is."""


class SetupRefused(ValetkeyError):
    """Another tool's settings cannot be changed, or not taken back, without losing something; they are as they were."""

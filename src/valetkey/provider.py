"""What a provider is: the types that a declaration is read into.

The fields are those of the TOML file, under the same names: `providers/` reads a file by walking these
types, and schema.json is made from them, so a quirk is added here and nowhere else. JSON places in
answers are JSON pointers (RFC 6901). Text in braces is filled in with parameters, secrets or both.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

__all__ = [
    "BUILT_IN_KINDS",
    "Api",
    "AuthKind",
    "AuthMethod",
    "Call",
    "Checked",
    "Claims",
    "CreateKey",
    "Device",
    "DialectRule",
    "Exchange",
    "Inject",
    "Loopback",
    "Parameter",
    "Provider",
    "Redirect",
    "Rewrite",
    "Sandbox",
    "Shape",
    "Source",
    "Token",
    "When",
]

AuthKind = Literal["api-key", "device", "device-exchange", "authorization-code", "cloud", "custom"]
BUILT_IN_KINDS: frozenset[str] = frozenset(get_args(AuthKind))
Encoding = Literal["form", "json"]
DialectId = Literal["openai-chat", "openai-responses", "anthropic-messages", "gemini", "none"]


@dataclass(frozen=True, kw_only=True)
class Checked:
    """When the facts were compiled, the page to hold them against, and whether it ever ran against the real server."""

    on: datetime.date
    at: str
    live: bool = False


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request that asks a provider something; `get` or `post` is a path on base_url or a whole URL.

    For a probe, the pointers say where the answer tells who one is. For a model list, `items` says where
    the list is, `id` where in an item its id is, `keep` and `drop` are globs on ids, and `known` is the
    list itself where the provider has no call for it; a name may be a {parameter} of the login.
    """

    get: str | None = None
    post: str | None = None
    body: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    account_id: str | None = None
    name: str | None = None
    email: str | None = None
    plan: str | None = None
    items: str | None = None
    id: str | None = None
    keep: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    # Of a probe: statuses that only a good credential gets, beside 2xx and 429, and that mean a bad one, beside 401.
    accepted: tuple[int, ...] = ()
    rejected: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DialectRule:
    """Another dialect for the models that `match` (a glob) names; first match wins."""

    match: str
    dialect: DialectId


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    """A response that would confuse the tool, and what it gets in its place."""

    path: str
    when_status: int
    status: int
    body: str = ""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How a question in `dialect` differs here from that dialect's own form; the first that fits counts.

    `path` (streamed) and `whole_path` (not streamed) may hold {model} and {parameters}. `set` gives fields of the body
    (a name ending in `?` only if absent), `rename` gives them other names, `remove` leaves them out.
    """

    dialect: DialectId
    path: str | None = None
    whole_path: str | None = None
    set: Mapping[str, str | bool | int] = field(default_factory=dict)
    rename: Mapping[str, str] = field(default_factory=dict)
    remove: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Api:
    """Where the API is and how it is spoken to."""

    base_url: str
    dialect: DialectId = "none"
    dialects: tuple[DialectRule, ...] = ()
    # Where the credential may be put in, and nowhere else. A leading "*." takes subdomains.
    hosts: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    probe: Call | None = None
    models: Call | None = None
    shapes: tuple[Shape, ...] = ()
    off_limits: tuple[str, ...] = ()
    rewrite: tuple[Rewrite, ...] = ()
    # Custom providers: plain HTTP that the user agreed to although a key goes over it.
    allow_http: bool = False


@dataclass(frozen=True, kw_only=True)
class When:
    """Fields that change when every parameter in `values` has just that value; first match wins."""

    values: Mapping[str, str]
    base_url: str | None = None
    hosts: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A value that the login asks for beside the secret. `default_from` is a command whose output is the default."""

    key: str
    label: str
    description: str = ""
    default: str | None = None
    default_from: tuple[str, ...] = ()
    required: bool = True
    pattern: str | None = None
    options: tuple[str, ...] = ()
    secret: bool = False
    environment: tuple[str, ...] = ()
    # The value is a host: of a pasted URL only that is kept, before `pattern` looks at it.
    host: bool = False


@dataclass(frozen=True, kw_only=True)
class Inject:
    """How the credential goes into a request: header templates, for all declared hosts or for `hosts`.

    A header name ending in `?` is set only if absent; one ending in `+` adds to a comma list.
    `basic` is a user:password template for Basic. `query` and `cookie` name parameters, in place of the client's own.
    `replace` says what the gateway puts where the client wrote its valet key in the path or the body.
    """

    hosts: tuple[str, ...] = ()
    set: Mapping[str, str] = field(default_factory=dict)
    remove: tuple[str, ...] = ()
    basic: str | None = None
    query: Mapping[str, str] = field(default_factory=dict)
    cookie: Mapping[str, str] = field(default_factory=dict)
    replace: Mapping[Literal["path", "body"], str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """What a run sees instead of the credential.

    `files` are paths below /etc, or `~/…` in the run's own home, and lines (no line break behind the last). Of two
    accounts with one path the first granted one's stands there; where the path ends in `+`, all of them do.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    placeholder: str = "vk-placeholder"


@dataclass(frozen=True, kw_only=True)
class Loopback:
    """A redirect to this machine (RFC 8252 section 7.3). No `ports` means any free one.

    `host` is what the redirect_uri says; the socket is bound to 127.0.0.1 all the same.
    """

    host: str = "127.0.0.1"
    ports: tuple[int, ...] = ()
    path: str = "/callback"


@dataclass(frozen=True, kw_only=True)
class Redirect:
    """Where the authorization server sends the user back; `paste` is a page that shows the code.

    `parameter` is the query parameter's name where it is not the RFC's; `state` is "query" (RFC 6749
    section 4.1.1) or "callback" where the server keeps no state and it rides in the redirect_uri.
    """

    loopback: Loopback | None = None
    paste: str | None = None
    parameter: str = "redirect_uri"
    state: Literal["query", "callback"] = "query"


@dataclass(frozen=True, kw_only=True)
class Token:
    """How this token endpoint differs from RFC 6749."""

    body: Encoding = "form"
    refresh_body: Encoding | None = None
    send_state: bool = False
    send_scope: bool = False
    send_client_id: bool = True
    parameters: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    errors_in_200: bool = False
    pending_status: tuple[int, ...] = ()
    # Error codes that end a login for good beside invalid_grant.
    final_errors: tuple[str, ...] = ()
    final_status: tuple[int, ...] = ()
    # Where the life is told: expires_in, the access token's own exp claim, or a fixed number of seconds.
    expires_from: Literal["expires_in", "access_token", "none"] = "expires_in"
    default_expires_in: int | None = None
    # "client": renewals of all accounts under this client id go one after the other.
    serialize: Literal["account", "client"] = "account"
    # Where the answer is a lasting key and no OAuth token (OpenRouter), the pointer to it. Such an endpoint is asked
    # with code, code_verifier and `parameters` alone.
    key: str | None = None


@dataclass(frozen=True, kw_only=True)
class Device:
    """How this device authorization endpoint differs from RFC 8628."""

    body: Encoding = "form"
    # The RFC's field names on the left, this server's on the right (a list is tried in order).
    fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    verification_uri: str | None = None
    expires_in: int | None = None
    # Another place to ask than the token endpoint, and the fields that it wants (template values).
    poll: str | None = None
    poll_body: Encoding | None = None
    poll_parameters: Mapping[str, str] = field(default_factory=dict)
    # "authorization_code": the poll ends in a code and the server's own verifier, exchanged with this redirect_uri.
    answer: Literal["tokens", "authorization_code"] = "tokens"
    redirect_uri: str | None = None


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """Buys a short-lived key with the token; the names are pointers into the answer."""

    get: str | None = None
    post: str | None = None
    body: Encoding = "json"
    headers: Mapping[str, str] = field(default_factory=dict)
    key: str = "/token"
    expires_at: str | None = None
    expires_in: str | None = None
    refresh_in: str | None = None
    base_url: str | None = None


@dataclass(frozen=True, kw_only=True)
class CreateKey:
    """The login ends by creating a lasting key with the token, which is then dropped."""

    post: str
    body: Encoding = "form"
    headers: Mapping[str, str] = field(default_factory=dict)
    key: str = "/raw_key"


@dataclass(frozen=True, kw_only=True)
class Claims:
    """Where account, e-mail and plan come from: pointers into a token's claims, tried in order."""

    token: tuple[Literal["id_token", "access_token"], ...] = ("id_token",)
    account_id: tuple[str, ...] = ()
    name: tuple[str, ...] = ()
    email: tuple[str, ...] = ()
    plan: tuple[str, ...] = ()
    # In place of a token: a call that answers with the same things.
    profile: Call | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """An ambient source, read again at each use.

    `command` prints the secret (first line) or, with `json`, an object whose pointers `values` names.
    Templates call what it gives by the names in `values`; without them a command or a file gives `key`, gcloud-adc
    `access_token`, the aws kinds `access_key_id`, `secret_access_key`, `session_token`. A command may name parameters.
    `file` is a path (`~` allowed). `variable` is the environment variable that moves it.
    `expires_at` is a pointer, `life_seconds` a fixed life where the source tells none.
    """

    kind: Literal["command", "gcloud-adc", "aws-profile", "aws-role", "file"]
    command: tuple[str, ...] = ()
    json: bool = False
    file: str | None = None
    variable: str | None = None
    values: Mapping[str, str] = field(default_factory=dict)
    expires_at: str | None = None
    life_seconds: int | None = None
    scope: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AuthMethod:
    """One way to log in: its flow's kind, and what that flow needs to know about this provider.

    A kind that is not built in is the name of an entry point in the group `valetkey.flows`.
    """

    id: str
    kind: AuthKind | str
    label: str = ""
    standing: Literal["open", "restricted"] = "open"
    notice: str = ""
    # A restricted login with this serves only these agents in a run.
    for_agents: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    # Variables that `exec` and `env` set; without it, the first of `environment` gets the secret.
    exports: Mapping[str, str] = field(default_factory=dict)
    prefix: str | None = None
    keys_url: str | None = None
    # An API key that may be left out (local servers).
    optional: bool = False
    parameters: tuple[Parameter, ...] = ()
    when: tuple[When, ...] = ()
    # Where the key is several named secrets, their names, labels and variables.
    secrets: tuple[Parameter, ...] = ()
    base_url: str | None = None
    hosts: tuple[str, ...] = ()
    inject: tuple[Inject, ...] = ()
    sandbox: Sandbox | None = None
    probe: Call | None = None
    client_id: str | None = None
    scope: tuple[str, ...] = ()
    authorization_endpoint: str | None = None
    authorization_parameters: Mapping[str, str] = field(default_factory=dict)
    device_authorization_endpoint: str | None = None
    token_endpoint: str | None = None
    # RFC 9207: compared with `iss` in the authorization response where that is sent.
    issuer: str | None = None
    redirect: Redirect | None = None
    token: Token = field(default_factory=Token)
    device: Device = field(default_factory=Device)
    exchange: Exchange | None = None
    create_key: CreateKey | None = None
    claims: Claims | None = None
    source: Source | None = None
    revocation_endpoint: str | None = None
    revocation_body: Encoding = "form"
    # Seconds; renews this often whatever the token says.
    refresh_interval: int | None = None
    endpoint: str | None = None

    @property
    def built_in_kind(self) -> AuthKind | None:
        """The kind to match on, None where a package ships the flow."""
        return cast("AuthKind", self.kind) if self.kind in BUILT_IN_KINDS else None


@dataclass(frozen=True, kw_only=True)
class Provider:
    """A service with an API. `origin` and `path` say where the declaration came from."""

    id: str
    name: str
    api: Api
    auth: tuple[AuthMethod, ...]
    checked: Checked | None = None
    tools: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    override: bool = False
    default_model: str | None = None
    origin: Literal["built-in", "user", "plugin"] = "built-in"
    path: str = ""

    def method(self, id: str) -> AuthMethod | None:
        """Give the way to log in that has this id."""
        return next((m for m in self.auth if m.id == id), None)

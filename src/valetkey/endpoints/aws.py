"""AWS: short-lived keys of a role, as the SDKs fetch them from a container's credentials endpoint.

https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from datetime import UTC, timedelta
from typing import Any

from valetkey.credential import Credential, CredentialRef, Secret, login_command, secrets_of
from valetkey.endpoint import Granted, Issued
from valetkey.errors import (
    BaseCredentialRefused,
    CredentialError,
    EndpointUnavailable,
    IssuerUnavailable,
    RoleDenied,
    RoleInvalid,
)
from valetkey.http import in_thread

__all__ = ["Aws"]

# What has less left could end under a request that was just signed.
_LEAST = timedelta(minutes=5)
# An SDK waits 2 s for an answer and asks three times, a second apart; beyond that nobody would read what we say.
_CONNECT_SECONDS, _READ_SECONDS, _ATTEMPTS = 2, 4, 2

# https://docs.aws.amazon.com/STS/latest/APIReference/CommonErrors.html, and what AssumeRole adds.
_BASE = frozenset(
    (
        "AuthFailure",
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "MissingAuthenticationToken",
        "OptInRequired",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
        "UnrecognizedClientException",
    )
)
_DENIED = frozenset(("AccessDenied", "AccessDeniedException", "NotAuthorized", "UnauthorizedOperation"))
# 403 as well, and yet it is the region that is not switched on for the account.
_WRONG = frozenset(("RegionDisabledException",))
# Beside every 5xx and 429.
_BUSY = frozenset(
    (
        "PriorRequestNotComplete",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "RequestTimeout",
        "SlowDown",
        "Throttling",
        "ThrottledException",
        "ThrottlingException",
        "TooManyRequestsException",
    )
)


class Aws:
    """Serves the keys of the account's role. Each run has a session of its own, which is called after it."""

    id = "aws"
    routes = ("/credentials",)
    variables: Mapping[str, str] = {
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": "{address}/credentials",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN": "{token}",
    }

    def check(self, ref: CredentialRef, parameters: Mapping[str, str]) -> None:
        """See that boto3 is there and that a role is named.

        Without a role there would be the keys themselves, or a session with all that their owner may do
        (GetSessionToken), which no trail of AWS would tell from the owner. Neither goes into a run.
        """
        if importlib.util.find_spec("boto3") is None:
            raise EndpointUnavailable(
                f"{ref} serves a run by the package boto3, which is not installed",
                provider=ref.provider,
                hint="run `pip install 'valetkey[aws]'`",
            )
        if not parameters.get("role_arn"):
            raise EndpointUnavailable(
                f"{ref} names no role, and a run gets short-lived keys of a role alone",
                provider=ref.provider,
                hint=f"log in again with one: `{login_command(ref)} --param role_arn=arn:aws:iam::ACCOUNT:role/NAME`",
            )

    async def issue(self, route: str, granted: Granted) -> Issued:
        """Take the role: one call of AssumeRole, in a thread.

        https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html
        """
        self.check(granted.ref, granted.parameters)
        # A login without a source holds keys itself; any other is a profile that the SDK reads.
        keys = await granted.credential() if granted.method.source is None else None
        return await in_thread(lambda: _issued(granted, keys))


def _issued(granted: Granted, keys: Credential | None) -> Issued:
    from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]  # it ships no types
    from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]  # as above

    try:
        found = _client(granted, keys).assume_role(**_wanted(granted)).get("Credentials")
    except ClientError as error:
        told = error.response.get("Error", {}).get("Code", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        raise _refused(granted, str(told)[:60] or f"HTTP {status}", status) from error
    except ResponseParserError as error:
        raise _unavailable(granted, "its answer cannot be read") from error
    except BotoCoreError as error:
        raise _failed(granted, error) from error
    if not found:
        raise _unavailable(granted, "its answer holds no keys")
    ends = found["Expiration"].astimezone(UTC)
    document = {
        "AccessKeyId": found["AccessKeyId"],
        "SecretAccessKey": found["SecretAccessKey"],
        "Token": found["SessionToken"],
        "Expiration": ends.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "RoleArn": granted.parameters["role_arn"],
    }
    return Issued(content=Secret(json.dumps(document)), again_until=ends - _LEAST)


def _client(granted: Granted, keys: Credential | None) -> Any:  # boto3 has no types
    import boto3  # type: ignore[import-untyped]  # it ships no types
    from botocore.config import Config  # type: ignore[import-untyped]  # as above

    parameters = granted.parameters
    held = {} if keys is None else secrets_of(keys)
    if keys is not None and not {"access_key_id", "secret_access_key"} <= held.keys():
        raise _base(granted, "the login holds no access key id with a secret access key")
    session = boto3.Session(
        aws_access_key_id=held["access_key_id"].reveal() if held else None,
        aws_secret_access_key=held["secret_access_key"].reveal() if held else None,
        aws_session_token=held["session_token"].reveal() or None if "session_token" in held else None,
        profile_name=parameters.get("profile") or None,
        region_name=parameters.get("region") or None,
    )
    patience = Config(
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
    )
    return session.client("sts", config=patience)


def _wanted(granted: Granted) -> dict[str, object]:
    parameters = granted.parameters
    # CloudTrail has the name beside all that is done with the keys.
    wanted: dict[str, object] = {
        "RoleArn": parameters["role_arn"],
        "RoleSessionName": f"valetkey-{granted.run}",
    }
    if parameters.get("external_id"):
        wanted["ExternalId"] = parameters["external_id"]
    if parameters.get("duration_seconds", "").isdecimal():
        wanted["DurationSeconds"] = int(parameters["duration_seconds"])
    return wanted


# --- what went wrong -------------------------------------------------------------------------


def _refused(granted: Granted, code: str, status: int) -> CredentialError:
    """Sort what STS answered. Its own words stay behind: they are a provider's, and may hold anything."""
    if code in _BUSY or status >= 500 or status == 429:
        return _unavailable(granted, code)
    if code in _BASE:
        return _base(granted, f"STS refused them: {code}")
    if code not in _WRONG and (code in _DENIED or status in (401, 403)):
        return RoleDenied(
            f"the keys of {granted.ref} may not take the role {granted.parameters['role_arn']} ({code})",
            provider=granted.ref.provider,
            hint="see that the role exists, that its trust policy names them and the external id, "
            "and that they may call sts:AssumeRole",
        )
    return _invalid(granted, code)


def _failed(granted: Granted, error: Exception) -> CredentialError:
    """Sort what went wrong on this side of STS."""
    from botocore import exceptions  # type: ignore[import-untyped]  # it ships no types

    name = type(error).__name__
    match error:
        case exceptions.HTTPClientError() | exceptions.ConnectionError():
            return _unavailable(granted, name)
        case (
            exceptions.ParamValidationError()
            | exceptions.NoRegionError()
            | exceptions.InvalidRegionError()
            | exceptions.UnknownServiceError()
        ):
            return _invalid(granted, name)
        case _:  # profiles, sign-ons, files: each way to credentials has its own
            return _base(granted, name)


def _base(granted: Granted, why: str) -> BaseCredentialRefused:
    ref, profile = granted.ref, granted.parameters.get("profile", "")
    if granted.method.source is None:
        hint = f"run `{login_command(ref)}` with keys that are valid"
    elif profile:
        hint = f"run `aws sso login --profile {profile}` or `aws configure --profile {profile}`"
    else:
        hint = "run `aws sso login` or `aws configure`"
    return BaseCredentialRefused(
        f"{ref} has no valid keys to take its role with ({why})", provider=ref.provider, hint=hint
    )


def _invalid(granted: Granted, code: str) -> RoleInvalid:
    return RoleInvalid(
        f"STS does not take the role or the parameters of {granted.ref} ({code})",
        provider=granted.ref.provider,
        hint=f"check role_arn, duration_seconds (at most what the role allows) and region: "
        f"`{login_command(granted.ref)} --param NAME=VALUE`",
    )


def _unavailable(granted: Granted, why: str) -> IssuerUnavailable:
    return IssuerUnavailable(
        f"STS gives no keys for {granted.ref} now ({why})",
        provider=granted.ref.provider,
        hint="try again in a moment; `curl -sSI https://sts.amazonaws.com` on the host says whether AWS is reached",
    )

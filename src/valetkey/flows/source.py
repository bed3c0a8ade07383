"""Ambient sources: commands, files and cloud profiles that are read at each use."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, assert_never

from valetkey.credential import Ambient, Secret
from valetkey.errors import SourceFailed, UnclearAnswer
from valetkey.flows.context import Context
from valetkey.flows.token_endpoint import check_header_safe
from valetkey.http import in_thread
from valetkey.inject import fill
from valetkey.pointer import look_up
from valetkey.provider import Source

__all__ = ["read"]

# `gh auth token` takes 50 ms, `gcloud auth print-access-token` 2 s, a cloud's sign-on helper longer.
COMMAND_SECONDS = 20.0
MAX_OUTPUT_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a source gave."""

    values: Mapping[str, Secret] = field(repr=False)
    expires_at: datetime | None = None


async def read(context: Context, source: Source, parameters: Mapping[str, str]) -> Ambient:
    """Read the source now. Raises: SourceFailed."""
    match source.kind:
        case "command":
            reading = _parsed(context, source, await _run(context, source, parameters))
        case "file":
            reading = _parsed(context, source, await in_thread(lambda: _read_file(context, source)))
        case "gcloud-adc":
            reading = await in_thread(lambda: _gcloud(context, source))
        case "aws-profile" | "aws-role":
            reading = await in_thread(lambda: _aws(context, source, parameters))
        case _:
            assert_never(source.kind)
    now = context.clock.now()
    expires_at = reading.expires_at
    if expires_at is None and source.life_seconds is not None:
        expires_at = now + timedelta(seconds=source.life_seconds)
    return Ambient(
        method=context.method.id,
        values=reading.values,
        issued_at=now,
        expires_at=expires_at,
        parameters=parameters,
    )


def _failed(context: Context, message: str, hint: str) -> SourceFailed:
    return SourceFailed(message, hint=hint, provider=context.id)


# --- commands and files ------------------------------------------------------------------------


async def _run(context: Context, source: Source, parameters: Mapping[str, str]) -> bytes:
    argv = [fill(word, parameters) for word in source.command]
    name = argv[0] if argv else ""
    try:
        # In a session of its own: a helper's children end with it, and none reads our terminal.
        process = subprocess.Popen(  # noqa: S603, ASYNC220  # the declaration's argv, no shell; starting takes no time
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(context.environ),
            start_new_session=True,
        )
    except (OSError, IndexError, ValueError) as error:
        raise _failed(context, f"{name} cannot be started", f"install {name} and log in there") from error
    try:
        output, status = await in_thread(lambda: _wait(process))
    except subprocess.TimeoutExpired as error:
        raise _failed(
            context, f"`{' '.join(source.command)}` did not end within {COMMAND_SECONDS:.0f} s", "run it yourself"
        ) from error
    finally:
        _end(process)
    if status != 0:
        raise _failed(
            context,
            f"`{' '.join(source.command)}` ended with status {status}",
            f"run `{' '.join(source.command[:2])}` yourself to see why; you may not be logged in there",
        )
    return output


def _wait(process: subprocess.Popen[bytes]) -> tuple[bytes, int]:
    output, _ = process.communicate(timeout=COMMAND_SECONDS)
    return output[:MAX_OUTPUT_BYTES], process.returncode


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return


def _read_file(context: Context, source: Source) -> bytes:
    named = context.environ.get(source.variable or "") or source.file or ""
    home = context.environ.get("HOME", "~")
    path = Path(home + named[1:] if named.startswith("~/") else named)
    try:
        with path.open("rb") as opened:
            return opened.read(MAX_OUTPUT_BYTES)
    except OSError as error:
        why = error.strerror.lower() if error.strerror else "it is not there"
        raise _failed(context, f"{named} cannot be read: {why}", "log in with the tool that writes it") from error


def _parsed(context: Context, source: Source, output: bytes) -> Reading:
    try:
        if source.json:
            document = json.loads(output)
            values = {name: check_header_safe(look_up(document, p), name) for name, p in source.values.items()}
            ends = None if source.expires_at is None else _moment(look_up(document, source.expires_at))
            return Reading(values=values, expires_at=ends)
        lines = output.decode().strip().splitlines()
        line = check_header_safe(lines[0].strip() if lines else "", "secret")
        return Reading(values=dict.fromkeys(source.values or ("key",), line))
    except (ValueError, RecursionError, UnclearAnswer) as error:
        raise _failed(
            context,
            f"the source of {context.id} gave nothing that is a credential",
            "log in with the tool that it belongs to, then try again",
        ) from (error if isinstance(error, UnclearAnswer) else None)


def _moment(value: object) -> datetime | None:
    try:
        if isinstance(value, str):
            found = datetime.fromisoformat(value)
            return found if found.tzinfo else found.replace(tzinfo=UTC)
        # Other tools write milliseconds; no life of ours begins after the year 5000.
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value / 1000 if value > 1e11 else value, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return None


# --- clouds ------------------------------------------------------------------------------------


def _load(context: Context, module: str, extra: str) -> Any:  # an extra that need not be installed
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise _failed(
            context, f"this login needs the package {module.split('.')[0]}", f"pip install 'valetkey[{extra}]'"
        ) from error


def _gcloud(context: Context, source: Source) -> Reading:
    auth = _load(context, "google.auth", "google")
    transport = _load(context, "google.auth.transport.requests", "google")
    scopes = list(source.scope) or ["https://www.googleapis.com/auth/cloud-platform"]
    try:
        # It reads the process's own environment, as the other clouds' libraries do.
        credentials, _ = auth.default(scopes=scopes)
        credentials.refresh(transport.Request())
        token = check_header_safe(credentials.token, "access token")
    except (auth.exceptions.GoogleAuthError, UnclearAnswer, ValueError, OSError) as error:
        raise _failed(
            context,
            "Google's application default credentials gave no token",
            "run `gcloud auth application-default login`",
        ) from error
    ends = credentials.expiry
    return Reading(
        values=dict.fromkeys(source.values or ("access_token",), token),
        expires_at=ends.replace(tzinfo=UTC) if ends is not None else None,
    )


def _aws(context: Context, source: Source, parameters: Mapping[str, str]) -> Reading:
    boto3 = _load(context, "boto3", "aws")
    exceptions = _load(context, "botocore.exceptions", "aws")
    try:
        session = boto3.Session(
            profile_name=parameters.get("profile") or None, region_name=parameters.get("region") or None
        )
        if source.kind == "aws-role":
            return _assume(session, context, parameters)
        credentials = session.get_credentials()
        if credentials is None:
            raise _failed(context, "AWS has no credentials for this profile", "run `aws configure` or `aws sso login`")
        frozen = credentials.get_frozen_credentials()
    except (exceptions.BotoCoreError, exceptions.ClientError) as error:
        raise _failed(context, "AWS gave no credentials", _aws_hint(error)) from error
    # botocore keeps the end of a refreshable credential to itself; a static one has none.
    ends = getattr(credentials, "_expiry_time", None)
    return _aws_reading(frozen.access_key, frozen.secret_key, frozen.token, ends)


def _assume(session: Any, context: Context, parameters: Mapping[str, str]) -> Reading:  # boto3 has no types
    wanted = {"RoleArn": parameters.get("role_arn", ""), "RoleSessionName": "valetkey"}
    if parameters.get("external_id"):
        wanted["ExternalId"] = parameters["external_id"]
    duration = parameters.get("duration_seconds", "")
    answer = session.client("sts").assume_role(
        **wanted, **({"DurationSeconds": int(duration)} if duration.isdecimal() else {})
    )
    found = answer["Credentials"]
    return _aws_reading(found["AccessKeyId"], found["SecretAccessKey"], found["SessionToken"], found["Expiration"])


def _aws_reading(access_key: str, secret_key: str, token: str | None, ends: datetime | None) -> Reading:
    values = {"access_key_id": access_key, "secret_access_key": secret_key, "session_token": token or ""}
    return Reading(values={name: Secret(value) for name, value in values.items()}, expires_at=ends)


def _aws_hint(error: Exception) -> str:
    code = getattr(error, "response", {}).get("Error", {}).get("Code", "")
    if code == "AccessDenied":
        return "check the role's trust policy and the external id"
    return "run `aws sts get-caller-identity` to see what AWS says"

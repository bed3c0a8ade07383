"""Forms: what is asked for, and whether what was entered is of the declared form."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from valetkey.credential import ApiKey, Fields, Secret
from valetkey.errors import InvalidParameter, MissingParameter
from valetkey.flow import Input
from valetkey.flows.context import Context
from valetkey.http import in_thread
from valetkey.provider import Parameter

__all__ = ["check_known", "check_secret", "inputs", "keyed", "resolve", "secret_inputs"]

# The longest real credential seen is a service-account JSON of 3 kB; HTTP servers end a head at 16 kB or less.
MAX_SECRET_CHARS = 16 * 1024
MAX_VALUE_CHARS = 2048
# A default is a convenience: a command that hangs must not hold up the login.
DEFAULT_COMMAND_SECONDS = 5.0
KEY = Parameter(key="key", label="API key", secret=True)


def check_known(given: Iterable[str], known: Iterable[str], context: Context) -> None:
    """Refuse what nothing declares. Raises: InvalidParameter."""
    names = list(known)
    for name in given:
        if name not in names:
            listed = ", ".join(names) or "none"
            raise InvalidParameter(
                f"{name[:40]!r} is not a parameter of {context.id}/{context.method.id}",
                hint=f"use one of: {listed}",
                provider=context.id,
            )


def check_secret(value: str, parameter: Parameter, context: Context) -> str:
    """Give the secret without surrounding blanks. Raises: InvalidParameter, never with a part of it."""
    stripped = value.strip()
    if len(stripped) > MAX_SECRET_CHARS:
        problem = f"is longer than {MAX_SECRET_CHARS} characters"
    elif any(c in stripped for c in "\r\n"):
        problem = "has a line break in it"
    elif not stripped.isascii():
        problem = "has a character outside ASCII in it"
    elif not stripped.isprintable():
        problem = "has a control character in it"
    else:
        return stripped
    raise InvalidParameter(
        f"the {parameter.label} {problem}", hint="copy it again, alone and whole", provider=context.id
    )


async def resolve(context: Context, given: Mapping[str, str]) -> dict[str, str]:
    """Give every declared parameter a value: the given one, else environment, default, the default's command.

    One that may be left out and was is empty, so that templates find it.
    Raises: InvalidParameter, MissingParameter.
    """
    declared = context.method.parameters
    check_known(given, [p.key for p in declared], context)
    values = {}
    for parameter in declared:
        value = given.get(parameter.key, "").strip() or await default_of(parameter, context) or ""
        values[parameter.key] = _checked(value, parameter, context)
    return values


async def default_of(parameter: Parameter, context: Context) -> str | None:
    """Give what stands when nothing is entered, None where there is no default."""
    for variable in parameter.environment:
        if context.environ.get(variable, "").strip():
            return context.environ[variable].strip()
    if parameter.default is not None:
        return parameter.default
    if parameter.default_from:
        return await in_thread(lambda: _first_line(parameter.default_from, context.environ))
    return None


def _first_line(command: tuple[str, ...], environ: Mapping[str, str]) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603  # the declaration's own argv, no shell
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DEFAULT_COMMAND_SECONDS,
            check=False,
            env=dict(environ),
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.decode(errors="replace").splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else None


def _checked(value: str, parameter: Parameter, context: Context) -> str:
    if parameter.host and value:
        value = _host_of(value)
    if not value:
        if not parameter.required:
            return ""
        variables = f" or set {parameter.environment[0]}" if parameter.environment else ""
        raise MissingParameter(
            f"{context.id} needs {parameter.key} ({parameter.label})",
            hint=f"give it with --param {parameter.key}=VALUE{variables}",
            provider=context.id,
        )
    fits = parameter.pattern is None or re.fullmatch(parameter.pattern, value) is not None
    chosen = not parameter.options or value in parameter.options
    if fits and chosen and value.isprintable() and len(value) <= MAX_VALUE_CHARS:
        return value
    wanted = ", ".join(parameter.options) or parameter.pattern or "one line of text"
    raise InvalidParameter(
        f"{parameter.key} is not of the form that {context.id} wants",
        hint=f"use {'one of' if parameter.options else 'the form'}: {wanted}",
        provider=context.id,
    )


def _host_of(value: str) -> str:
    try:
        host = urlsplit(value if "://" in value else f"https://{value}").hostname
    except ValueError:
        return value
    return host or value


async def inputs(context: Context) -> tuple[Input, ...]:
    """Give the form's fields for the declared parameters, filled in with what is known already."""
    check_known(context.parameters, [p.key for p in context.method.parameters], context)
    fields = []
    for parameter in context.method.parameters:
        given = context.parameters.get(parameter.key) or await default_of(parameter, context)
        fields.append(_input(parameter, default=None if parameter.secret else given))
    return tuple(fields)


def secret_inputs(context: Context) -> tuple[Input, ...]:
    """Give the fields for the secrets: the key, or the several that the declaration names."""
    if context.method.secrets:
        return tuple(_input(p, default=None, secret=True) for p in context.method.secrets)
    return (_input(KEY, default=None, secret=True, required=not context.method.optional),)


def _input(
    parameter: Parameter, *, default: str | None, secret: bool | None = None, required: bool | None = None
) -> Input:
    return Input(
        key=parameter.key,
        label=parameter.label,
        description=parameter.description,
        default=default,
        required=parameter.required if required is None else required,
        secret=parameter.secret if secret is None else secret,
        pattern=parameter.pattern,
        options=parameter.options,
    )


async def keyed(context: Context, answer: Mapping[str, str]) -> ApiKey | Fields:
    """Turn a filled-in form into an ApiKey, or into Fields where several secrets are declared.

    Raises: MissingParameter, InvalidParameter.
    """
    secrets = context.method.secrets or (KEY,)
    names = [p.key for p in secrets]
    check_known(answer, [*names, *(p.key for p in context.method.parameters)], context)
    found = {p.key: check_secret(answer.get(p.key, ""), p, context) for p in secrets}
    entered = {name: value for name, value in answer.items() if name not in names}
    parameters = await resolve(context, {**context.parameters, **entered})
    if not context.method.secrets:
        if not found["key"] and not context.method.optional:
            raise _no_secret(KEY, context)
        return ApiKey(method=context.method.id, key=Secret(found["key"]), parameters=parameters)
    for parameter in secrets:
        if parameter.required and not found[parameter.key]:
            raise _no_secret(parameter, context)
        pattern = parameter.pattern
        if pattern is not None and found[parameter.key] and not re.fullmatch(pattern, found[parameter.key]):
            raise InvalidParameter(
                f"the {parameter.label} is not of the form that {context.id} wants",
                hint="copy it again, alone and whole",
                provider=context.id,
            )
    values = {name: Secret(value) for name, value in found.items()}
    return Fields(method=context.method.id, values=values, parameters=parameters)


def _no_secret(parameter: Parameter, context: Context) -> MissingParameter:
    where = f"get one at {context.method.keys_url}" if context.method.keys_url else f"run `{context.login}` again"
    return MissingParameter(f"no {parameter.label} was given", hint=where, provider=context.id)

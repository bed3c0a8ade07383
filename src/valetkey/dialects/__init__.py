"""The dialects there are, and which one a provider speaks for a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from urllib.parse import quote

from valetkey.dialect import Dialect, Message, Model, Question
from valetkey.errors import ProviderError
from valetkey.inject import fill
from valetkey.provider import Provider, Shape

__all__ = ["dialect_for", "dialect_of", "models_in", "question_for"]


def dialect_for(id: str) -> Dialect:
    """Give the dialect of this name; only its module is loaded. Raises: ProviderError."""
    match id:
        case "openai-chat":
            from valetkey.dialects.openai_chat import OpenAIChat

            return OpenAIChat()
        case "openai-responses":
            from valetkey.dialects.openai_responses import OpenAIResponses

            return OpenAIResponses()
        case "anthropic-messages":
            from valetkey.dialects.anthropic_messages import AnthropicMessages

            return AnthropicMessages()
        case "gemini":
            from valetkey.dialects.gemini import Gemini

            return Gemini()
        case _:
            raise ProviderError(f"there is no dialect {id!r}", hint="choose a provider that can be asked")


def dialect_of(provider: Provider, model: str) -> Dialect:
    """Give the dialect in which this provider is asked for this model. Raises: ProviderError when it has none."""
    api = provider.api
    name = next((rule.dialect for rule in api.dialects if fnmatchcase(model, rule.match)), api.dialect)
    if name == "none":
        raise ProviderError(
            f"{provider.id} has no models to ask", hint="choose another with `valetkey models`", provider=provider.id
        )
    return dialect_for(name)


def question_for(
    provider: Provider,
    *,
    model: str,
    messages: Sequence[Message],
    parameters: Mapping[str, str],
    stream: bool = True,
    max_output_tokens: int | None = None,
) -> tuple[Dialect, Question]:
    """Make the request as this provider wants it, and name the dialect that reads its answer.

    `parameters` are those of the login. Raises: ProviderError, InvalidProvider.
    """
    dialect = dialect_of(provider, model)
    question = dialect.ask(model=model, messages=messages, stream=stream, max_output_tokens=max_output_tokens)
    shape = next((s for s in provider.api.shapes if s.dialect == dialect.id), None)
    if shape is not None:
        path = shape.path if stream else shape.whole_path or shape.path
        if path is not None:
            question = replace(question, path=fill(path, {**parameters, "model": quote(model, safe="")}))
        question = replace(question, body=_shaped(question.body, shape))
    return dialect, question


def _shaped(body: Mapping[str, object], shape: Shape) -> dict[str, object]:
    kept = {name: value for name, value in body.items() if name not in shape.remove}
    shaped = {shape.rename.get(name, name): value for name, value in kept.items()}
    for name, value in shape.set.items():
        if name.endswith("?"):
            shaped.setdefault(name[:-1], value)
        else:
            shaped[name] = value
    return shaped


def models_in(provider: Provider, answer: object) -> list[Model]:
    """Read a model list as the declaration says, filtered by its `keep` and `drop`.

    Raises: UnclearAnswer, ProviderError when neither declaration nor dialect knows how.
    """
    call = provider.api.models
    if call is not None and call.items is not None:
        from valetkey.dialects.reading import listed
        from valetkey.pointer import look_up, text_at

        names = [text_at(item, call.id or "/id") for item in listed(look_up(answer, call.items))]
        models = [Model(id=name) for name in names if name]
    else:
        models = dialect_of(provider, "").read_models(answer)
    if call is None:
        return models
    kept = [m for m in models if not call.keep or any(fnmatchcase(m.id, glob) for glob in call.keep)]
    return [m for m in kept if not any(fnmatchcase(m.id, glob) for glob in call.drop)]

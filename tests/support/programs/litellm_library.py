"""LiteLLM as a library: asks each model of the JSON list on standard input, {model, api_base, api_key}. Prints JSON."""

import asyncio
import importlib
import json
import sys
from typing import Any

# By name: its types are half a million lines that mypy would read.
litellm: Any = importlib.import_module("litellm")
litellm.telemetry = False
litellm.suppress_debug_info = True
question = [{"role": "user", "content": "hi"}]


async def ask(**asked: str) -> dict[str, object]:
    whole = litellm.completion(**asked, messages=question)
    pieces = [
        chunk.choices[0].delta.content or "" for chunk in litellm.completion(**asked, messages=question, stream=True)
    ]
    later = await litellm.acompletion(**asked, messages=question)
    return {
        "whole": whole.choices[0].message.content,
        "stream": "".join(pieces),
        "events": len(pieces),
        "async": later.choices[0].message.content,
    }


async def main() -> None:
    sys.stdout.write(json.dumps([await ask(**asked) for asked in json.load(sys.stdin)]))


asyncio.run(main())

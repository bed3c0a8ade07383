"""The OpenAI SDK as its users write it: OPENAI_BASE_URL and OPENAI_API_KEY, and nothing of ours. Prints JSON."""

import asyncio
import json
import sys

from openai import AsyncOpenAI, OpenAI

model = sys.argv[1]
told: dict[str, object] = {}

with OpenAI(max_retries=0) as client:
    chat = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}])
    told["chat"] = chat.choices[0].message.content
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "hi"}], stream=True
        )
        if chunk.choices
    ]
    told["chat_stream"], told["chat_events"] = "".join(pieces), len(pieces)
    told["responses"] = client.responses.create(model=model, input="hi").output_text


async def main() -> None:
    async with AsyncOpenAI(max_retries=0) as client:
        # At once, so that one client has several connections, or several requests on one.
        answers = await asyncio.gather(*(client.responses.create(model=model, input="hi") for _ in range(4)))
        told["async"] = [answer.output_text for answer in answers]
        events = [event async for event in await client.responses.create(model=model, input="hi", stream=True)]
        told["async_stream"] = "".join(e.delta for e in events if e.type == "response.output_text.delta")
        told["async_events"] = len(events)


asyncio.run(main())
sys.stdout.write(json.dumps(told))

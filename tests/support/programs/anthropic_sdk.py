"""The Anthropic SDK as its users write it: ANTHROPIC_BASE_URL and a key, and nothing of ours. Prints JSON."""

import asyncio
import json
import sys

from anthropic import Anthropic, AsyncAnthropic
from anthropic.types import MessageParam, TextBlock

model = sys.argv[1]
told: dict[str, object] = {}
question: list[MessageParam] = [{"role": "user", "content": "hi"}]

with Anthropic(max_retries=0) as client:
    answer = client.messages.create(model=model, max_tokens=64, messages=question)
    told["messages"] = "".join(block.text for block in answer.content if isinstance(block, TextBlock))
    events = list(client.messages.create(model=model, max_tokens=64, messages=question, stream=True))
    told["events"] = len(events)


async def main() -> None:
    async with AsyncAnthropic(max_retries=0) as client:
        again = await client.messages.create(model=model, max_tokens=64, messages=question)
        told["async"] = "".join(block.text for block in again.content if isinstance(block, TextBlock))
        async with client.messages.stream(model=model, max_tokens=64, messages=question) as stream:
            told["async_stream"] = await stream.get_final_text()


asyncio.run(main())
sys.stdout.write(json.dumps(told))

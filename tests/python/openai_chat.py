"""What the official `openai` client makes of /v1/chat/completions: one line of JSON.

    python openai_chat.py BASE_URL
"""

import asyncio
import json
import sys

from openai import AsyncOpenAI, BadRequestError, OpenAI

ASKED = [{"role": "user", "content": "What do late invoices cost?"}]
BEFORE = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello there."},
          {"role": "assistant", "content": "Hello."}]  # fmt: skip


def main(url):
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    whole = client.chat.completions.create(model="nerve", messages=BEFORE + ASKED, temperature=0.5, max_tokens=9)
    streamed, usage = "", None
    parts = client.chat.completions.create(
        model="nerve", messages=ASKED, stream=True, stream_options={"include_usage": True}
    )
    for part in parts:
        streamed += "".join(choice.delta.content or "" for choice in part.choices)
        usage = part.usage or usage
    errors = []
    try:
        client.chat.completions.create(model="nerve", messages=[])
    except BadRequestError as error:
        errors.append(error.status_code)

    async def side_by_side():
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as other:
            parts = await other.chat.completions.create(model="nerve", messages=ASKED, stream=True)
            return "".join([choice.delta.content or "" async for part in parts for choice in part.choices])

    print(json.dumps({
        "whole": whole.choices[0].message.content,
        "finish": whole.choices[0].finish_reason,
        "object": whole.object,
        "citation": whole.citations[0]["source"],
        "streamed": streamed,
        "usage": {name: getattr(usage, name) for name in ("completion_tokens", "prompt_tokens", "total_tokens")},
        "async": asyncio.run(side_by_side()),
        "errors": errors,
    }))  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1])

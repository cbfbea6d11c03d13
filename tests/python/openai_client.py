"""What the official `openai` client makes of /v1/embeddings: one line of JSON.

    python openai_client.py BASE_URL

Nothing of the client is set but its base URL and a key, which it wants to have.
"""

import asyncio
import json
import sys

from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI

MODEL = "all-MiniLM-L6-v2"


def main(url):
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    # Unasked, it asks for Base64 and decodes it.
    one = client.embeddings.create(model=MODEL, input="This is an example sentence")
    floats = client.embeddings.create(model=MODEL, input=["This is an example sentence", "", "日本 😀"], encoding_format="float")
    short = client.embeddings.create(model=MODEL, input=["a"], dimensions=16)
    errors = []
    for wrong, model in (([], MODEL), ("a", "no-such-model"), ([[1, 2, 3]], MODEL)):
        try:
            client.embeddings.create(model=model, input=wrong)
        except (BadRequestError, NotFoundError) as error:
            errors.append([error.status_code, error.type, error.code])

    async def many():
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as side_by_side:
            asked = [side_by_side.embeddings.create(model=MODEL, input=f"text number {n}") for n in range(64)]
            return [len(answer.data[0].embedding) for answer in await asyncio.gather(*asked)]

    print(json.dumps({
        "vector": one.data[0].embedding,
        "usage": one.usage.model_dump(),
        "model": one.model,
        "base64_equals_float": all(abs(a - b) < 1e-7 for a, b in zip(one.data[0].embedding, floats.data[0].embedding, strict=True)),
        "indices": [item.index for item in floats.data],
        "lengths": [len(item.embedding) for item in floats.data],
        "short": len(short.data[0].embedding),
        "many": asyncio.run(many()),
        "errors": errors,
    }))  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1])

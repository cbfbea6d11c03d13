"""Which exceptions the official `openai` client raises, by case: one line of JSON.

    python openai_errors.py BASE_URL KEY
"""

import json
import sys
import threading
import time

from openai import APIStatusError, OpenAI

MODEL = "all-MiniLM-L6-v2"
ASKED = [{"role": "user", "content": "What do late invoices cost?"}]


def raised(call):
    """The exception, its status, and the type and code of its body; None when the call succeeds."""
    try:
        call()
    except APIStatusError as error:
        return [type(error).__name__, error.status_code, error.type, error.code]


def full_queue(client):
    """Long texts fill the queue; another text meanwhile is refused."""
    long = [f"{n} " + "word " * 250 for n in range(2000)]

    def fill():
        # It is cut off by the end of the program.
        raised(lambda: client.embeddings.create(model=MODEL, input=long))

    threading.Thread(target=fill, daemon=True).start()
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if error := raised(lambda: client.embeddings.create(model=MODEL, input="a")):
            return error


def main(url, key):
    client = OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
    stranger = OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0)
    print(json.dumps({
        "no key": raised(lambda: stranger.chat.completions.create(model="nerve", messages=ASKED)),
        "no input": raised(lambda: client.embeddings.create(model=MODEL, input=[])),
        "no JSON": raised(lambda: client.chat.completions.create(model="nerve", messages="none")),
        "no model": raised(lambda: client.embeddings.create(model="no-such-model", input="a")),
        "too large": raised(lambda: client.embeddings.create(model=MODEL, input="x" * (20 << 20))),
        "full queue": full_queue(client),
        "no pipeline": raised(lambda: client.chat.completions.create(model="nerve", messages=ASKED)),
    }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])

"""prompt.received → answer.token … answer.generated: what is wrong with a draft, said as it is found."""

import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

LONGEST = 30  # words in a sentence
STDOUT = Lock()


def remarks(draft):
    """Each remark as soon as it is found: a generator, so that none waits for the rest of the draft."""
    for number, found in enumerate(re.finditer(r"\S.*?(?:[.!?](?=\s)|\Z)", draft, re.S), start=1):
        sentence = found.group()
        words = re.findall(r"\w+", sentence)
        if len(words) > LONGEST:
            yield f"Sentence {number} has {len(words)} words: make two of it.\n"
        for word, again in zip(words, words[1:]):
            if word.lower() == again.lower():
                yield f"Sentence {number} says “{word}” twice.\n"
        if sentence.count("(") != sentence.count(")"):
            yield f"Sentence {number} has a bracket without its other half.\n"


def say(line):
    with STDOUT:
        print(json.dumps(line), flush=True)


def review(call):
    data = call["event"]["data"]
    draft = data.get("text", data.get("question")) if isinstance(data, dict) else None
    if not isinstance(draft, str):
        return say({"id": call["id"], "error": {"kind": "invalid", "message": "there is no draft: send it as `text`"}})
    said = []
    for remark in remarks(draft):
        said.append(remark)
        say({"id": call["id"], "emit": {"type": "answer.token", "data": {"text": remark}}})
    answer = "".join(said) or "There is nothing to remark.\n"
    whole = {"question": data.get("question"), "answer": answer, "remarks": len(said)}
    say({"id": call["id"], "events": [{"type": "answer.generated", "data": whole}]})


with ThreadPoolExecutor(8) as threads:
    for line in sys.stdin:
        threads.submit(review, json.loads(line))

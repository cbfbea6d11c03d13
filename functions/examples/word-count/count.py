"""Counts the words of a document: a plain process that speaks Nerve's line protocol, with nothing but Python.

One JSON object a line on stdin, one on stdout; stderr is the function's log; the end of stdin means finish.
"""

import json
import re
import sys
from collections import Counter

WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")


def count(event):
    """What to publish for `event`; a ValueError says why it can never succeed."""
    data = event.get("data")
    text = data.get("text") if isinstance(data, dict) else data
    if not isinstance(text, str):
        raise ValueError("the document has no text: `data` must be a string, or an object with a string `text`")
    words = [word.lower() for word in WORD.findall(text)]
    return {
        "type": "document.counted",
        "data": {
            "document": event.get("subject") or event["id"],
            "words": len(words),
            "distinct": len(set(words)),
            "lines": len(text.splitlines()),
            "characters": len(text),
            "most_common": [{"word": word, "times": times} for word, times in Counter(words).most_common(5)],
        },
    }


def main():
    print("word-count is ready", file=sys.stderr, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = {"id": request["id"]}
        try:
            answer["events"] = [count(request["event"])]
        except ValueError as error:
            answer["error"] = {"kind": "invalid", "message": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

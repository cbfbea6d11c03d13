"""Nerve's line protocol around a function of an event's type and data."""

import json
import sys


def serve(handle):
    """Answers each event with the one that `handle(type, data)` returns as a pair.

    These functions do the same with the same event each time, so what fails once would fail again: `invalid`.
    """
    for line in sys.stdin:
        call = json.loads(line)
        event = call["event"]
        try:
            ty, data = handle(event["type"], event["data"])
            answer = {"events": [{"type": ty, "data": data}]}
        except Exception as error:
            answer = {"error": {"kind": "invalid", "message": f"{event['type']}: {type(error).__name__}: {error}"}}
        print(json.dumps({"id": call["id"], **answer}), flush=True)

"""answer.generated → memory.updated: what was said, in which conversation. It keeps nothing: the log does."""

import json
import sys

for line in sys.stdin:
    call = json.loads(line)
    event = call["event"]
    said = {name: event["data"][name] for name in ("question", "answer")}
    conversation = event["data"].get("conversation", event["correlationid"])
    updated = {"type": "memory.updated", "partitionkey": conversation, "data": {"conversation": conversation, **said}}
    print(json.dumps({"id": call["id"], "events": [updated]}), flush=True)

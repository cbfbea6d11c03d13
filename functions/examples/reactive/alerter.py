"""document.classified → alert.raised, where a class is one of $URGENT. Most documents raise none."""

import json
import os
import sys

URGENT = os.environ["URGENT"].split()

for line in sys.stdin:
    call = json.loads(line)
    data = call["event"]["data"]
    because = {name: words for name, words in data["classes"].items() if name in URGENT}
    alert = {"type": "alert.raised", "data": {"document": data["document"], "because": because}}
    print(json.dumps({"id": call["id"], "events": [alert] if because else []}), flush=True)

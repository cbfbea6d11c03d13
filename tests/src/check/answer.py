"""Answers each question with itself, and with which run it was."""

import json
import sys
import uuid

for line in sys.stdin:
    call = json.loads(line)
    asked = call["event"]["data"]
    answer = f"{asked['question']} {uuid.uuid4().hex[:12]}"
    whole = {**asked, "answer": answer, "answered": True, "citations": []}
    print(json.dumps({"id": call["id"], "events": [{"type": "answer.generated", "data": whole}]}), flush=True)

"""documents.retrieved → answer.generated, word by word: the best paragraph, quoted. A language model fits here."""

import json
import re
import sys

for line in sys.stdin:
    call = json.loads(line)
    asked = call["event"]["data"]
    best = asked["documents"][:1]
    citations = [{"source": one["document"], "name": one["name"], "text": one["text"]} for one in best]
    answer = citations[0]["text"] if citations else "The texts do not say."
    for word in re.findall(r"\s*\S+", answer):
        token = {"type": "answer.token", "data": {"text": word}}
        print(json.dumps({"id": call["id"], "emit": token}), flush=True)
    whole = {**asked, "answer": answer, "answered": bool(citations), "citations": citations}
    print(json.dumps({"id": call["id"], "events": [{"type": "answer.generated", "data": whole}]}), flush=True)

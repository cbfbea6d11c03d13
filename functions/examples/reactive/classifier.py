"""document.uploaded → document.classified: the classes of rules.toml that its words speak for."""

import json
import re
import sys
import tomllib

with open("rules.toml", "rb") as file:
    RULES = {
        name: (rule["least"], [(word, re.compile(rf"\b{re.escape(word)}\b", re.I)) for word in rule["words"]])
        for name, rule in tomllib.load(file).items()
    }


def classify(event):
    data = event.get("data")
    text = data.get("text") if isinstance(data, dict) else data
    if not isinstance(text, str):
        raise ValueError("the document has no text: `data` must be a string, or an object with a string `text`")
    classes = {}
    for name, (least, words) in RULES.items():
        found = [word for word, pattern in words if pattern.search(text)]
        if len(found) >= least:
            classes[name] = found
    document = (data.get("document") if isinstance(data, dict) else None) or event.get("subject") or event["id"]
    return {"type": "document.classified", "data": {"document": document, "classes": classes}}


for line in sys.stdin:
    call = json.loads(line)
    try:
        answer = {"events": [classify(call["event"])]}
    except ValueError as error:
        answer = {"error": {"kind": "invalid", "message": str(error)}}
    print(json.dumps({"id": call["id"], **answer}), flush=True)

"""document.uploaded → document.indexed: documents into a table of SQLite, a batch a transaction."""

import json
import os
import re
import select
import sqlite3
from datetime import datetime

TABLE = "CREATE TABLE IF NOT EXISTS documents (document PRIMARY KEY, text, words INTEGER, uploaded REAL)"
# Events come in no order and may come twice: what was uploaded last stays.
UPSERT = """INSERT INTO documents VALUES (:document, :text, :words, :uploaded)
    ON CONFLICT (document) DO UPDATE SET text = excluded.text, words = excluded.words, uploaded = excluded.uploaded
    WHERE excluded.uploaded >= uploaded"""

database = sqlite3.connect(os.environ["DATABASE"], timeout=20)
database.execute(TABLE)


def batches():
    """The calls that stand on stdin at once: those of a batch, or one alone."""
    buffer = b""
    while chunk := os.read(0, 1 << 20):
        buffer += chunk
        while select.select([0], [], [], 0.005)[0] and (chunk := os.read(0, 1 << 20)):
            buffer += chunk
        *lines, buffer = buffer.split(b"\n")
        if lines:
            yield [json.loads(line) for line in lines]


def row(event):
    data = event.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("text"), str):
        raise ValueError("the document has no text: `data` must be an object with a string `text`")
    name = data.get("document") or data.get("name") or event.get("subject") or event["id"]
    words = len(re.findall(r"\w+", data["text"]))
    uploaded = datetime.fromisoformat(event["time"]).timestamp() if "time" in event else 0.0
    return {"document": name, "text": data["text"], "words": words, "uploaded": uploaded}


def answer(call, **rest):
    print(json.dumps({"id": call["id"], **rest}), flush=True)


for calls in batches():
    rows = []
    for call in calls:
        try:
            rows.append((call, row(call["event"])))
        except ValueError as error:
            answer(call, error={"kind": "invalid", "message": str(error)})
    try:
        with database:
            database.executemany(UPSERT, [row for _, row in rows])
    except sqlite3.Error as error:
        for call, _ in rows:
            answer(call, error={"kind": "retry", "message": f"the database: {error}"})
        continue
    for call, stored in rows:
        indexed = {"document": stored["document"], "words": stored["words"], "chunks": 1, "together": len(rows)}
        answer(call, events=[{"type": "document.indexed", "data": indexed}])

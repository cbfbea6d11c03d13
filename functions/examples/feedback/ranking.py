"""feedback.submitted → ranking.updated: every document's weight, after all feedback up to this one.

The log is the state: it is read from its beginning each time, so nothing is kept here that could be lost or be wrong.
"""

import json
import os
import sys
from collections import defaultdict
from http.client import HTTPException
from urllib.request import Request, urlopen

LOG = os.environ["GATEWAY"] + "/v1/events?subject=events.feedback.submitted&from=first"
KEY = os.environ.get("NERVE_KEY")  # where the gateway wants one: add it to `secrets` in nerve.toml


def opinion(event):
    """The document that a feedback is about and its rating, from -1 to 1; nothing where it rates no document."""
    match event.get("data"):
        case {"document": str() as document, "rating": int() | float() as rating}:
            return document, max(-1, min(1, rating))


def log_up_to(last):
    """The events of the log, until and with this one; server-sent events, whose `data:` is an event as JSON."""
    headers = {"Authorization": f"Bearer {KEY}"} if KEY else {}
    with urlopen(Request(LOG, headers=headers), timeout=20) as lines:
        for line in lines:
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                yield event
                if (event.get("source"), event.get("id")) == (last["source"], last["id"]):
                    return
    raise OSError("the gateway ended it before this event")


def ranking(events):
    ratings = defaultdict(list)
    for document, rating in filter(None, map(opinion, events)):
        ratings[document].append(rating)
    # The two stand for readers who do not care, so that the first who does is not all that counts.
    weights = {document: round(1 + sum(given) / (len(given) + 2), 3) for document, given in ratings.items()}
    return {"weights": weights, "feedbacks": sum(map(len, ratings.values()))}


for line in sys.stdin:
    call = json.loads(line)
    answer = {"events": []}
    try:
        if opinion(call["event"]):
            answer["events"] = [{"type": "ranking.updated", "data": ranking(log_up_to(call["event"]))}]
    except (OSError, HTTPException) as error:
        answer = {"error": {"kind": "retry", "message": f"the log cannot be read at {LOG}: {error}"}}
    print(json.dumps({"id": call["id"], **answer}), flush=True)

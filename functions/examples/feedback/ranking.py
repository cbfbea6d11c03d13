"""feedback.submitted → ranking.updated: every document's weight, after all feedback up to this one.

The log is the state: it is read from its beginning each time, so nothing is kept here that could be lost or be wrong.
"""

import json
import os
import sys
from collections import Counter
from http.client import HTTPException
from urllib.request import Request, urlopen

LOG = os.environ["GATEWAY"] + "/v1/events?subject=events.feedback.submitted&from=first"
KEY = os.environ.get("NERVE_KEY")  # where the gateway wants one: add it to `secrets` in nerve.toml
WRONG = "feedback is an object with a `document`, and `useful`: true or false"


def is_feedback(data):
    return isinstance(data, dict) and isinstance(data.get("document"), str) and isinstance(data.get("useful"), bool)


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


def rank(events):
    useful, votes = Counter(), Counter()
    for data in (event.get("data") for event in events):
        if is_feedback(data):
            useful[data["document"]] += data["useful"]
            votes[data["document"]] += 1
    # With one vote each way to begin with, so that one reader does not decide.
    weights = {document: round(2 * (useful[document] + 1) / (votes[document] + 2), 3) for document in votes}
    return {"type": "ranking.updated", "data": {"weights": weights, "feedbacks": votes.total()}}


for line in sys.stdin:
    call = json.loads(line)
    event = call["event"]
    try:
        if is_feedback(event.get("data")):
            answer = {"events": [rank(log_up_to(event))]}
        else:
            answer = {"error": {"kind": "invalid", "message": WRONG}}
    except (OSError, HTTPException) as error:
        answer = {"error": {"kind": "retry", "message": f"the log cannot be read at {LOG}: {error}"}}
    print(json.dumps({"id": call["id"], **answer}), flush=True)

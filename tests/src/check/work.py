"""Does with each event what its data says, and writes down each run."""

import json
import os
import sys
import time
import uuid

RUNS, VERSION = os.environ["RUNS"], int(os.environ["VERSION"])


def ran(n):
    with open(RUNS) as runs:
        return any(json.loads(line)["n"] == n for line in runs)


for line in sys.stdin:
    call = json.loads(line)
    plan = call["event"]["data"]
    n, run, first = plan["n"], uuid.uuid4().hex[:12], not ran(plan["n"])

    def say(**what):
        print(json.dumps({"id": call["id"], **what}), flush=True)

    with open(RUNS, "a") as runs:
        runs.write(json.dumps({"n": n, "run": run, "version": VERSION, "at": time.time()}) + "\n")
    if plan["slow"]:
        time.sleep(0.4)
    if plan["early"] == "Always" or (plan["early"] == "First" and first):
        say(emit={"type": "work.early", "data": {"n": n, "version": VERSION}})
    if plan["fails"] == "Once" and first:
        say(error={"kind": "retry", "message": "not the first time"})
    elif plan["fails"] == "UntilDeployed" and VERSION == 1:
        say(error={"kind": "invalid", "message": "not this version"})
    else:
        total = plan["results"]
        padding = "x" * 3000 if total > 100 else ""
        results = [
            {"n": n, "run": run, "index": index, "total": total, "padding": padding} for index in range(total)
        ]
        say(events=[{"type": "work.done", "data": result} for result in results])

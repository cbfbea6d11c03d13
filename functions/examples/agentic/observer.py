"""prompt.received, tool.returned → agent.step: what is known now, how it came about, and how many calls are left."""

import os

from serve import serve

STEPS = int(os.environ["STEPS"])


def observe(ty, data):
    if ty == "prompt.received":
        left = min(int(data.get("steps", STEPS)), STEPS)
        return "agent.step", {**data, "known": {}, "steps": [], "left": left}
    call = {name: data.pop(name) for name in ("call", "tool", "arguments", "finds", "result")}
    data["known"][call["finds"]] = call["result"]
    return "agent.step", {**data, "steps": [*data["steps"], call], "left": data["left"] - 1}


serve(observe)

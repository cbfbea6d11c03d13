"""A step of a pipeline that knows nothing but the JSON Schema of what it emits: it gives the required fields, and no others.

A field is what the event has under that name, reduced to what is required of it, or else is made up by its schema.
"""

import json
import os
import sys

OUTPUT = os.environ["OUTPUT"]
SCHEMA = json.loads(os.environ["SCHEMA"])
# What no schema tells: how many numbers the vectors of the deployed model have.
DIMENSIONS = int(os.environ["DIMENSIONS"])


def required(schema):
    return schema.get("required", []) + schema.get("anyOf", [{}])[0].get("required", [])


def found(value, name, kind):
    """The first value of this type under this name, outermost first."""
    level = [value]
    while level:
        for one in level:
            if isinstance(one, dict) and isinstance(one.get(name), kind):
                return one[name]
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one if isinstance(one, list) else [])]
    return None


def texts(value):
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for one in inner for text in texts(one)]


def reduced(schema, value, event):
    """Only what is required of a value."""
    if isinstance(value, dict):
        return {name: filled(schema["properties"][name], name, value, event) for name in required(schema)}
    if isinstance(value, list):
        return [reduced(schema.get("items", {}), one, event) for one in value]
    return value


def filled(schema, name, source, event):
    if "anyOf" in schema and "type" not in schema:
        schema = schema["anyOf"][0]
    kinds = {"string": str, "array": list, "object": dict, "number": (int, float), "integer": int, "boolean": bool}
    kind = schema.get("type")
    value = found(source, name, kinds[kind])
    if value is not None:
        return reduced(schema, value, event)
    if kind == "object":
        return {one: filled(schema["properties"][one], one, event, event) for one in required(schema)}
    if kind == "array" and schema["items"].get("type") == "number":
        return [0.1] * DIMENSIONS
    if kind == "array":
        # As many as there are of what came, such as an embedding for each chunk.
        came = next((one for one in event.values() if isinstance(one, list)), [event])
        return [filled(schema["items"], name, one, one) for one in came]
    if kind == "string":
        return max(texts(event), key=len, default="nothing")
    return False if kind == "boolean" else 1


for line in sys.stdin:
    call = json.loads(line)
    event = call["event"]["data"]
    data = {name: filled(SCHEMA["properties"][name], name, event, event) for name in required(SCHEMA)}
    print(json.dumps({"id": call["id"], "events": [{"type": OUTPUT, "data": data}]}), flush=True)

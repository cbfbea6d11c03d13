"""Called once per event in a fresh instance: calls share no memory."""

import json

import wit_world
from componentize_py_types import Err
from wit_world.imports import host
from wit_world.imports.types import Emission, Event, Failure_Invalid, Level


class WitWorld(wit_world.WitWorld):
    def handle(self, event: Event) -> list[Emission]:
        try:
            data = json.loads(event.data)
            name = data.get("name", "you")
        except (ValueError, AttributeError) as error:
            # A permanent failure: dead-lettered immediately. Failure_Retry requests a retry.
            raise Err(Failure_Invalid(f"the body is not a JSON object: {error}")) from error
        host.log(Level.INFO, f"answering {event.id}")
        return [emit("demo.answered", {"hello": name})]


def emit(type, data):
    """Creates an event to publish; `emits` in nerve.toml must cover its type."""
    return Emission(type=type, data=json.dumps(data).encode(), content_type=None, subject=None, partition_key=None)

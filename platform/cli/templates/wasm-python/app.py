"""Called once an event, in an instance of its own: nothing that is left in memory reaches the next call."""

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
            # Never succeeds: a dead letter at once. Failure_Retry is tried again by the schedule.
            raise Err(Failure_Invalid(f"the body is not a JSON object: {error}")) from error
        host.log(Level.INFO, f"answering {event.id}")
        return [emit("demo.answered", {"hello": name})]


def emit(type, data):
    """An event to publish; its type must be covered by `emits` in nerve.toml."""
    return Emission(type=type, data=json.dumps(data).encode(), content_type=None, subject=None, partition_key=None)

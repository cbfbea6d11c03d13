"""tool.called.lookup → tool.returned: a price in euros, or what a euro is in a currency; null if it has none."""

import json
import pathlib
import sys

from serve import serve

PRICES = json.loads(pathlib.Path(sys.argv[1]).read_text())


def look_up(_, data):
    return "tool.returned", {**data, "result": PRICES.get(data["arguments"]["argument"])}


serve(look_up)

"""A long-lived process that exchanges newline-delimited JSON on stdin and stdout.

stderr is the function's log. On EOF, the process finishes its work and exits.
"""

import json
import sys


def handle(event):
    """Returns the events to publish for `event`. A ValueError is permanent; any other exception is retried."""
    data = event.get("data")
    if not isinstance(data, dict):
        raise ValueError("the body is not a JSON object")
    print(f"answering {event['id']}", file=sys.stderr, flush=True)
    return [{"type": "demo.answered", "data": {"hello": data.get("name", "you")}}]


def main():
    for line in sys.stdin:
        request = json.loads(line)
        answer = {"id": request["id"]}
        try:
            answer["events"] = handle(request["event"])
        except ValueError as error:
            answer["error"] = {"kind": "invalid", "message": str(error)}
        except Exception as error:
            answer["error"] = {"kind": "retry", "message": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

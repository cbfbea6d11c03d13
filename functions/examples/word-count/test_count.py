"""Speaks the line protocol to count.py, as a worker does."""

import json
import pathlib
import subprocess
import sys
import unittest

HERE = pathlib.Path(__file__).parent


def answers(*events):
    lines = "".join(json.dumps({"id": n, "event": event}) + "\n" for n, event in enumerate(events))
    done = subprocess.run([sys.executable, HERE / "count.py"], input=lines, capture_output=True, text=True, timeout=30, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


class WordCount(unittest.TestCase):
    def test_a_document_is_counted(self):
        (answer,) = answers({"id": "a", "data": {"text": "A dog, a Dog;\nthe dog’s day: été 42"}})
        (event,) = answer["events"]
        self.assertEqual(event["type"], "document.counted")
        counted = event["data"]
        self.assertEqual((counted["words"], counted["distinct"], counted["lines"]), (8, 6, 2))
        self.assertEqual(counted["most_common"][:2], [{"word": "a", "times": 2}, {"word": "dog", "times": 2}])

    def test_a_bad_document_fails_alone(self):
        bad, good = answers({"id": "a", "data": 3}, {"id": "b", "data": "two words"})
        self.assertEqual((bad["id"], bad["error"]["kind"]), (0, "invalid"))
        self.assertEqual(good["events"][0]["data"]["words"], 2)


if __name__ == "__main__":
    unittest.main()

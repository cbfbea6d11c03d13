"""Finds what a comment, an issue or a document is about: one `text.keywords` with its weightiest words and phrases.

The method is RAKE: phrases are what stands between stop words and punctuation, and a word that is used in long
phrases weighs more than one that stands alone.
"""

import json
import re
from collections import Counter

import wit_world
from componentize_py_types import Err
from wit_world.imports import host
from wit_world.imports.types import Emission, Event, Failure_Invalid, Level

KEEP = 10
LONGEST_PHRASE = 4
STOP_WORDS = frozenset(
    """a about after all also am an and any are as at be because been but by can could did do does doing don for from
    get got had has have having he her here him his how i if in into is it its just like ll m may me might more most
    my no nor not now of off on once one only or other our out over own please re s same see she should so some such
    t than thanks that the their them then there these they this those through to too under until up us use used
    using ve very was we were what when where which while who whom why will with without would you your""".split()
)
# Code, links, quotes, mentions, HTML: not the author's own words.
NOISE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+|^>.*$|@[\w-]+|<[^>\n]{1,200}>", re.S | re.M)
WORD_OR_BREAK = re.compile(r"[^\W\d_][\w'’-]*|[^\s\w]|\d+|\n{2,}")


def phrases(text):
    """Runs of words with no stop word and no punctuation between them."""
    run = []
    for token in WORD_OR_BREAK.findall(NOISE.sub(" . ", text).lower()):
        word = token.strip("'’-")
        if len(word) > 1 and word[0].isalpha() and word not in STOP_WORDS and "'" not in word and "’" not in word:
            run.append(word)
        elif run:
            yield tuple(run)
            run = []
    if run:
        yield tuple(run)


def keywords(text):
    """The best phrases with their scores, best first; ties in the order of the alphabet."""
    found = Counter(phrase for phrase in phrases(text) if len(phrase) <= LONGEST_PHRASE)
    frequency, degree = Counter(), Counter()
    for phrase, times in found.items():
        for word in phrase:
            frequency[word] += times
            degree[word] += times * len(phrase)
    scores = {
        " ".join(phrase): times * sum(degree[word] / frequency[word] for word in phrase) for phrase, times in found.items()
    }
    best = sorted(scores.items(), key=lambda scored: (-scored[1], scored[0]))[:KEEP]
    return [{"text": text, "score": round(score, 2)} for text, score in best]


def text_of(body):
    """The words in a GitHub payload or in a document of ours, and where they are from."""
    for name in ("comment", "review", "issue", "pull_request", "discussion", "release"):
        part = body.get(name)
        if isinstance(part, dict) and isinstance(part.get("body"), str):
            title = part.get("title") if name != "comment" else None
            return f"{title or ''}\n\n{part['body']}", part.get("html_url")
    if isinstance(body.get("text"), str):
        return body["text"], body.get("url")
    raise Err(Failure_Invalid("the body has no text: neither `comment.body` and its like nor `text`"))


class WitWorld(wit_world.WitWorld):
    def handle(self, event: Event) -> list[Emission]:
        try:
            body = json.loads(event.data)
        except ValueError as error:
            raise Err(Failure_Invalid(f"the body is not JSON: {error}")) from error
        if not isinstance(body, dict):
            raise Err(Failure_Invalid("the body is not a JSON object"))
        text, url = text_of(body)
        found = keywords(text)
        if not found:
            host.log(Level.DEBUG, "no words but stop words")
            return []
        data = json.dumps({"event": event.id, "url": url, "keywords": found}, ensure_ascii=False).encode()
        return [Emission(type="text.keywords", data=data, content_type=None, subject=None, partition_key=None)]

"""agent.step → tool.called.NAME or answer.generated: rules decide what is missing, and which tool finds it.

The place for a language model: asked with `question`, `known` and `steps`, it would name the next call instead.
"""

import re

from serve import serve

CURRENCIES = {"euro": "EUR", "dollar": "USD", "pound": "GBP"}


class Call(Exception):
    """A tool has to be called first: which one, with what, and the name of what it finds."""


def need(known, tool, argument, finds):
    """What is known by this name; without it the tool has to find it."""
    if finds not in known:
        raise Call({"tool": tool, "argument": argument, "finds": finds})
    return known[finds]


def answer(question, known):
    text = question.lower()
    wanted = [(int(number), thing.removesuffix("s")) for number, thing in re.findall(r"(\d+) ([a-z]+)", text)]
    if not wanted:
        return None, "Ask what a number of things costs, such as 3 ropes and 2 anchors, and in which currency."
    prices = [need(known, "lookup", thing, thing) for _, thing in wanted]
    unknown = [thing for (_, thing), price in zip(wanted, prices) if price is None]
    if unknown:
        return None, f"There is no price for: {', '.join(unknown)}."
    sum_of = " + ".join(f"{number} * {price}" for (number, _), price in zip(wanted, prices))
    total = need(known, "calculate", sum_of, "total")
    currency = next((code for word, code in CURRENCIES.items() if word in text), "EUR")
    if currency != "EUR":
        rate = need(known, "lookup", currency, currency)
        total = need(known, "calculate", f"{total} * {rate}", "converted")
    return total, f"{total:.2f} {currency}"


def decide(_, step):
    try:
        amount, said = answer(step["question"], step["known"])
    except Call as needed:
        (call,) = needed.args
        if step["left"] > 0:
            arguments = {"argument": call["argument"]}
            called = {"call": str(len(step["steps"]) + 1), "tool": call["tool"], "arguments": arguments}
            return f"tool.called.{call['tool']}", {**step, **called, "finds": call["finds"]}
        amount, said = None, f"After {len(step['steps'])} steps this is still missing: {call['finds']}."
    return "answer.generated", {**step, "answer": said, "answered": amount is not None}


serve(decide)

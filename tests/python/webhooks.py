"""Sends webhooks that the providers' SDKs for Python sign.

    python webhooks.py HOOKS KEYS

As tests/node/providers.mjs, of whose line of JSON this prints the like: {"<provider>": {"<case>": status}}.
"""

import hmac
import http.client
import json
import sys
import time
from datetime import datetime, timezone
from urllib.parse import urlencode, urlsplit

import standardwebhooks
import svix.webhooks
from mailgun.security import SecurityGuard
from slack_sdk.signature import SignatureVerifier
from stripe import WebhookSignature
from twilio.request_validator import RequestValidator

HOUR = 3600
NOW = int(time.time())
INVOICE = json.dumps({"type": "invoice.paid", "data": {"id": "in_1"}})


def standard(webhook, prefix):
    """A sender of Standard Webhooks, by either package."""

    def sign(body, at, key):
        # It takes what it is given for UTC.
        moment = datetime.fromtimestamp(at, tz=timezone.utc)
        signature = webhook(key).sign("msg_1", moment, body)
        return {f"{prefix}-id": "msg_1", f"{prefix}-timestamp": str(at), f"{prefix}-signature": signature}

    return {
        "body": INVOICE,
        "sign": sign,
        "id": f"{prefix}-id",
        "timed": True,
        "other": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    }


def slack(body, at, key):
    signature = SignatureVerifier(key).generate_signature(timestamp=str(at), body=body)
    return {"x-slack-signature": signature, "x-slack-request-timestamp": str(at)}


def mailgun(at, key):
    """What it signs, a time and a token, stands in the body; what else is there nobody signs."""
    signature = hmac.new(key.encode(), f"{at}token-1".encode(), "sha256").hexdigest()
    # It verifies, and does not sign.
    assert SecurityGuard.verify_webhook(key, "token-1", at, signature, max_age_seconds=0), "Mailgun's SDK does not approve"
    return json.dumps({
        "signature": {"timestamp": str(at), "token": "token-1", "signature": signature},
        "event-data": {"event": "delivered", "recipient": "a@b.example"},
    })  # fmt: skip


FORM = {"MessageSid": "SM1", "Body": "hi there", "To": "+1800", "From": "+1415"}


def providers(hooks):
    """Each: the body, its headers for a body at a time by a secret, the id's header or the id in the body and another."""

    def twilio(_body, _at, key):
        return {"x-twilio-signature": RequestValidator(key).compute_signature(f"{hooks}/twilio", FORM)}

    return {
        "standard-webhooks": standard(standardwebhooks.Webhook, "webhook"),
        "svix": standard(svix.webhooks.Webhook, "svix"),
        "stripe": {
            "body": json.dumps({"id": "evt_1", "type": "invoice.paid", "data": {"object": {"id": "in_1"}}}),
            "sign": lambda body, at, key: {
                "stripe-signature": WebhookSignature.generate_signature_header(body, key, timestamp=at)
            },
            "fresh": ("evt_1", "evt_2"),
            "timed": True,
        },
        "slack": {
            "body": json.dumps({"type": "event_callback", "event_id": "Ev1", "event": {"type": "message"}}),
            "sign": slack,
            "fresh": ("Ev1", "Ev2"),
            "timed": True,
        },
        "twilio": {
            "body": urlencode(FORM),
            "type": "application/x-www-form-urlencoded",
            "sign": twilio,
            "unsigned_headers": {"i-twilio-idempotency-token": "t-1"},
            "id": "i-twilio-idempotency-token",
        },
        "mailgun": {"body": mailgun, "sign": lambda *_: {}, "fresh": ("token-1", "token-2"), "timed": True},
    }


def post(url, headers, body):
    """Headers are pairs, so that one may stand twice."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    connection.putrequest("POST", parts.path)
    for name, value in [*headers, ("content-length", str(len(body)))]:
        connection.putheader(name, value)
    connection.endheaders(body)
    status = connection.getresponse().status
    connection.close()
    return status


def run(hooks, name, provider, key):
    def make(at, secret):
        body = provider["body"](at, secret) if callable(provider["body"]) else provider["body"]
        signed = provider["sign"](body, at, secret)
        return body, {**provider.get("unsigned_headers", {}), **signed}, signed

    def send(body, headers, _=None, more=()):
        pairs = [("content-type", provider.get("type", "application/json")), *headers.items(), *more]
        return post(f"{hooks}/{name}", pairs, body if isinstance(body, bytes) else body.encode())

    body, headers, signed = good = make(NOW, key)
    statuses = {"good": send(*good), "again": send(*good)}
    if provider.get("timed"):
        statuses["old"] = send(*make(NOW - HOUR, key))
        statuses["future"] = send(*make(NOW + HOUR, key))
    statuses["wrong"] = send(*make(NOW, provider.get("other", "another secret")))
    for header, value in signed.items():
        statuses[f"without {header}"] = send(body, {name: kept for name, kept in headers.items() if name != header})
        statuses[f"twice {header}"] = send(body, headers, more=[(header, value)])
    if signed:
        changed = bytearray(body.encode())
        changed[-3] ^= 1
        statuses["body"] = send(bytes(changed), headers)
    else:
        whole = json.loads(body)
        for member in whole["signature"]:
            rest = {name: kept for name, kept in whole["signature"].items() if name != member}
            statuses[f"without {member}"] = send(json.dumps({**whole, "signature": rest}), headers)
    if "id" in provider:
        statuses["replay"] = send(body, {**headers, provider["id"]: "fresh"})
    else:
        statuses["replay"] = send(body.replace(*provider["fresh"]), headers)
    return statuses


def main(hooks, keys):
    secrets = json.loads(keys)
    told = {name: run(hooks, name, provider, secrets[name]) for name, provider in providers(hooks).items()}
    print(json.dumps(told))


main(*sys.argv[1:])

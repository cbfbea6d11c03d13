"""Receives webhooks and verifies each with the packages standardwebhooks and svix.

    python receive.py SECRET...

As tests/node/receive.mjs: prints its URL, then one line of JSON for each request: {"body", "verified":
["<package>:<number of the secret>"...]}. Answers 204 if any of them verifies, else 401.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import standardwebhooks
import svix.webhooks

PACKAGES = {"standardwebhooks": standardwebhooks.Webhook, "svix": svix.webhooks.Webhook}


class Endpoint(BaseHTTPRequestHandler):
    def do_POST(self):  # noqa: N802 (http.server's name)
        body = self.rfile.read(int(self.headers["content-length"]))
        verified = []
        for name, webhook in PACKAGES.items():
            for number, secret in enumerate(sys.argv[1:]):
                try:
                    webhook(secret).verify(body, dict(self.headers))
                    verified.append(f"{name}:{number}")
                except standardwebhooks.WebhookVerificationError:
                    pass  # Signed with another secret.
        print(json.dumps({"body": json.loads(body), "verified": verified}), flush=True)
        self.send_response(204 if verified else 401)
        self.end_headers()

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
print(f"http://127.0.0.1:{server.server_port}/", flush=True)
server.serve_forever()

// Receives webhooks and verifies each with the `standardwebhooks` and `svix` packages.
//
// node receive.mjs [--tls CERT KEY] SECRET...
//
// Prints its URL, then one line of JSON for each request: {"id", "body", "agent", "verified": [package:secret…]},
// where a secret is the number of its argument. Answers 204 if any of them verifies, else 401.
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createServer as createTlsServer } from "node:https";
import { Webhook as Standard } from "standardwebhooks";
import { Webhook as Svix } from "svix";

const args = process.argv.slice(2);
const files = args[0] === "--tls" ? args.splice(0, 3).slice(1) : undefined;
const secrets = args;

async function receive(request, response) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const body = Buffer.concat(chunks).toString();
  const verified = [];
  for (const [name, Webhook] of Object.entries({ standardwebhooks: Standard, svix: Svix })) {
    secrets.forEach((secret, number) => {
      try {
        new Webhook(secret).verify(body, request.headers);
        verified.push(`${name}:${number}`);
      } catch {
        // Signed with another secret.
      }
    });
  }
  console.log(
    JSON.stringify({
      id: request.headers["webhook-id"],
      body: JSON.parse(body),
      agent: request.headers["user-agent"],
      verified,
    }),
  );
  response.writeHead(verified.length ? 204 : 401).end();
}

const server = files
  ? createTlsServer({ cert: readFileSync(files[0]), key: readFileSync(files[1]) }, receive)
  : createServer(receive);
const origin = files ? "https://localhost" : "http://127.0.0.1";
server.listen(0, "127.0.0.1", () => console.log(`${origin}:${server.address().port}/`));

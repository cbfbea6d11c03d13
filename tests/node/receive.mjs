// Receives webhooks and verifies each with the `standardwebhooks` and `svix` packages.
//
// node receive.mjs SECRET...
//
// Prints its URL, then one line of JSON for each request: {"id", "body", "agent", "verified": [package:secret…]},
// where a secret is the number of its argument. Answers 204 if any of them verifies, else 401.
import { createServer } from "node:http";
import { Webhook as Standard } from "standardwebhooks";
import { Webhook as Svix } from "svix";

const secrets = process.argv.slice(2);

const server = createServer(async (request, response) => {
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
});
server.listen(0, "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}/`));

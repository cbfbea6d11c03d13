// Sends webhooks signed by the `standardwebhooks` and `svix` packages.
//
// node standard.mjs URL SECRET standardwebhooks|svix
//
// Sends one good delivery, the same one again, one signed with another secret, and one signed an hour ago.
// Prints one line of JSON: {"good", "again", "wrong", "stale"}: the statuses.
import { Webhook as Standard } from "standardwebhooks";
import { Webhook as Svix } from "svix";

const [url, secret, sdk] = process.argv.slice(2);
const Webhook = sdk === "svix" ? Svix : Standard;
const prefix = sdk === "svix" ? "svix" : "webhook";
const OTHER = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

async function send(id, time, key) {
  const body = JSON.stringify({ type: "invoice.paid", timestamp: time.toISOString(), data: { id, sdk } });
  const response = await fetch(url, {
    method: "POST",
    headers: {
      "content-type": "application/json",
      [`${prefix}-id`]: id,
      [`${prefix}-timestamp`]: Math.floor(time.getTime() / 1000).toString(),
      [`${prefix}-signature`]: new Webhook(key).sign(id, time, body),
    },
    body,
  });
  await response.arrayBuffer();
  return response.status;
}

const now = new Date();
const anHourAgo = new Date(now.getTime() - 3_600_000);
const good = await send("msg_good", now, secret);
const again = await send("msg_good", now, secret);
const wrong = await send("msg_wrong", now, OTHER);
const stale = await send("msg_stale", anHourAgo, secret);
console.log(JSON.stringify({ good, again, wrong, stale }));

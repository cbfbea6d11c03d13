// Sends webhooks of many providers, each signed, or at least approved, by the provider's own SDK.
//
// node providers.mjs HOOKS KEYS [TO HEADERS]
//
// HOOKS is the URL that the sources' names follow, as the provider knows it; KEYS is JSON: the secret of each source that
// there is. TO is where the gateway really is, and HEADERS, JSON, what a proxy before it adds. Each provider sends one good
// delivery, the same again, and then each of: the body changed by a byte, an old and a future time (where a time is signed),
// another secret, each header left out and doubled, and the signed bytes under a fresh id (where the id is a header).
// Prints one line of JSON: {"<provider>": {"<case>": status}}.
import { createHmac, createPrivateKey, sign as signWith } from "node:crypto";
import http from "node:http";
import { verifySlackRequest } from "@slack/bolt";
import { Signature } from "@hubspot/api-client";
import { LinearWebhookClient } from "@linear/sdk/webhooks";
import { signWebhookPayload } from "@notionhq/client";
import { Webhooks as GitHub } from "@octokit/webhooks";
import { Paddle } from "@paddle/paddle-node-sdk";
import { EventWebhook } from "@sendgrid/eventwebhook";
import { HashFormat, createSHA256HMAC, setAbstractRuntimeString } from "@shopify/shopify-api/runtime";
import "@shopify/shopify-api/adapters/node";
import { CloudEvent, HTTP } from "cloudevents";
import { verifyKey } from "discord-interactions";
import { WebhooksHelper } from "square";
import { Webhook as Standard } from "standardwebhooks";
import Stripe from "stripe";
import twilio from "twilio";

const [hooks, keysText, to = hooks, headersText = "{}"] = process.argv.slice(2);
const [keys, added] = [JSON.parse(keysText), JSON.parse(headersText)];
const NOW = Math.floor(Date.now() / 1000);
const HOUR = 3600;

function approved(yes, provider) {
  if (!yes) throw new Error(`${provider}'s SDK does not approve of what we sign`);
}

const hmac = (key, text, encoding) => createHmac("sha256", key).update(text).digest(encoding);
const bytes = (text) => Uint8Array.from(Buffer.from(text));

// Each: the URL's query, the body, and the headers for a body at a time (in seconds) by a secret.
const providers = {
  github: {
    body: JSON.stringify({ action: "opened", repository: { full_name: "o/r" } }),
    id: "x-github-delivery",
    sign: async (body, _, key) => ({
      "x-github-event": "pull_request",
      "x-github-delivery": "delivery-1",
      "x-hub-signature-256": await new GitHub({ secret: key }).sign(body),
    }),
    signed: ["x-hub-signature-256"],
  },
  gitlab: {
    body: JSON.stringify({ object_kind: "push" }),
    id: "webhook-id",
    sign: (body, time, key) => ({
      "x-gitlab-event": "Push Hook",
      "webhook-id": "gl-1",
      "webhook-timestamp": `${time}`,
      "webhook-signature": new Standard(key).sign("gl-1", new Date(time * 1000), body),
    }),
    signed: ["webhook-id", "webhook-timestamp", "webhook-signature"],
    timed: true,
    other: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
  },
  stripe: {
    body: JSON.stringify({ id: "evt_1", type: "invoice.paid", data: { object: { id: "in_1" } } }),
    sign: (payload, timestamp, secret) => ({
      "stripe-signature": new Stripe("sk_test_1").webhooks.generateTestHeaderString({ payload, secret, timestamp }),
    }),
    signed: ["stripe-signature"],
    timed: true,
  },
  slack: {
    body: JSON.stringify({ type: "event_callback", event_id: "Ev1", event: { type: "message", channel: "C1" } }),
    sign: (body, time, key) => {
      const headers = {
        "x-slack-signature": `v0=${hmac(key, `v0:${time}:${body}`, "hex")}`,
        "x-slack-request-timestamp": time,
      };
      verifySlackRequest({ signingSecret: key, body, headers, nowMilliseconds: time * 1000 });
      return { ...headers, "x-slack-request-timestamp": `${time}` };
    },
    signed: ["x-slack-signature", "x-slack-request-timestamp"],
    timed: true,
  },
  shopify: {
    body: JSON.stringify({ id: 1 }),
    id: "x-shopify-webhook-id",
    sign: async (body, _, key) => ({
      "x-shopify-topic": "orders/create",
      "x-shopify-webhook-id": "w-1",
      "x-shopify-hmac-sha256": await createSHA256HMAC(key, body, HashFormat.Base64),
    }),
    signed: ["x-shopify-hmac-sha256"],
  },
  twilio: {
    body: "MessageSid=SM1&Body=hi+there&To=%2B1800&From=%2B1415",
    type: "application/x-www-form-urlencoded",
    id: "i-twilio-idempotency-token",
    sign: (body, _, key) => ({
      "i-twilio-idempotency-token": "t-1",
      "x-twilio-signature": twilio.getExpectedTwilioSignature(
        key,
        `${hooks}/twilio`,
        Object.fromEntries(new URLSearchParams(body)),
      ),
    }),
    signed: ["x-twilio-signature"],
  },
  "twilio-json": {
    source: "twilio",
    body: JSON.stringify({ status: "done" }),
    query: (body) => `?bodySHA256=${twilio.getExpectedBodyHash(body)}`,
    id: "i-twilio-idempotency-token",
    sign: (body, _, key, query) => ({
      "i-twilio-idempotency-token": "t-2",
      "x-twilio-signature": twilio.getExpectedTwilioSignature(key, `${hooks}/twilio${query}`, {}),
    }),
    signed: ["x-twilio-signature"],
  },
  discord: {
    body: JSON.stringify({ id: "interaction-1", type: 2 }),
    sign: async (body, time, key) => {
      const secret = createPrivateKey(key.private);
      const signature = signWith(null, Buffer.from(`${time}${body}`), secret).toString("hex");
      approved(await verifyKey(body, signature, `${time}`, key.public), "Discord");
      return { "x-signature-ed25519": signature, "x-signature-timestamp": `${time}` };
    },
    signed: ["x-signature-ed25519", "x-signature-timestamp"],
    timed: true,
  },
  sendgrid: {
    body: JSON.stringify([
      { sg_event_id: "sg-1", event: "delivered" },
      { sg_event_id: "sg-2", event: "open" },
    ]),
    sign: (body, time, key) => {
      const signature = signWith("sha256", Buffer.from(`${time}${body}`), createPrivateKey(key.private));
      const text = signature.toString("base64");
      const webhook = new EventWebhook();
      const ok = webhook.verifySignature(webhook.convertPublicKeyToECDSA(key.public), body, text, `${time}`);
      approved(ok, "SendGrid");
      return {
        "x-twilio-email-event-webhook-signature": text,
        "x-twilio-email-event-webhook-timestamp": `${time}`,
      };
    },
    signed: ["x-twilio-email-event-webhook-signature", "x-twilio-email-event-webhook-timestamp"],
    timed: true,
  },
  linear: {
    body: (time) => JSON.stringify({ action: "create", webhookTimestamp: time * 1000, data: { id: "L1" } }),
    id: "linear-delivery",
    sign: (body, time, key) => {
      const signature = hmac(key, body, "hex");
      // It refuses by itself what is older than a minute.
      if (time === NOW) approved(new LinearWebhookClient(key).verify(Buffer.from(body), signature), "Linear");
      return { "linear-event": "Issue", "linear-delivery": "l-1", "linear-signature": signature };
    },
    signed: ["linear-signature"],
    timed: true,
  },
  square: {
    body: JSON.stringify({ event_id: "sq-1", type: "payment.created" }),
    sign: async (requestBody, _, signatureKey) => {
      const notificationUrl = `${hooks}/square`;
      const signatureHeader = hmac(signatureKey, notificationUrl + requestBody, "base64");
      const given = { requestBody, signatureHeader, signatureKey, notificationUrl };
      approved(await WebhooksHelper.verifySignature(given), "Square");
      return { "x-square-hmacsha256-signature": signatureHeader };
    },
    signed: ["x-square-hmacsha256-signature"],
  },
  paddle: {
    body: JSON.stringify({ event_id: "pd-1", event_type: "transaction.paid", data: { id: "txn_1" } }),
    sign: async (body, time, key) => {
      const header = (at) => `ts=${at};h1=${hmac(key, `${at}:${body}`, "hex")}`;
      // The SDK refuses what is older than five seconds.
      const fresh = header(Math.floor(Date.now() / 1000));
      approved(await new Paddle("an API key").webhooks.isSignatureValid(body, key, fresh), "Paddle");
      return { "paddle-signature": header(time) };
    },
    signed: ["paddle-signature"],
    timed: true,
  },
  hubspot: {
    body: JSON.stringify([
      { eventId: 100, subscriptionId: 7, objectId: 1, subscriptionType: "contact.creation" },
      { eventId: 101, subscriptionId: 7, objectId: 2, subscriptionType: "contact.creation" },
    ]),
    sign: (requestBody, time, clientSecret) => ({
      "x-hubspot-request-timestamp": `${time * 1000}`,
      "x-hubspot-signature-v3": Signature.getSignature("POST", "v3", {
        clientSecret,
        requestBody,
        url: `${hooks}/hubspot`,
        timestamp: time * 1000,
      }),
    }),
    signed: ["x-hubspot-request-timestamp", "x-hubspot-signature-v3"],
    timed: true,
  },
  notion: {
    body: JSON.stringify({ id: "n-1", type: "page.created", entity: { id: "p-1" } }),
    sign: async (body, _, verificationToken) => ({
      "x-notion-signature": await signWebhookPayload({ body, verificationToken }),
    }),
    signed: ["x-notion-signature"],
  },
  cloudevents: {
    body: JSON.stringify({ n: 1 }),
    unsigned: true,
    sign: (body, _, key) => {
      const event = new CloudEvent({ id: "ce-1", source: "/shop", type: "order.made", data: JSON.parse(body) });
      return { ...HTTP.binary(event).headers, authorization: `Bearer ${key}` };
    },
    signed: ["authorization"],
  },
};

function post(source, query, type, headers, body) {
  return new Promise((resolve, reject) => {
    const request = http.request(
      `${to}/${source}${query}`,
      { method: "POST", headers: { "content-type": type, ...headers, ...added, "content-length": Buffer.byteLength(body) } },
      (response) => {
        response.resume();
        response.on("end", () => resolve(response.statusCode));
      },
    );
    request.on("error", reject);
    request.end(body);
  });
}

async function run(name, provider) {
  const { source = name, type = "application/json", other = "another secret", signed, id } = provider;
  const key = keys[name];
  const body = (time) => (typeof provider.body === "function" ? provider.body(time) : provider.body);
  const query = (text) => (provider.query ? provider.query(text) : "");
  const signFor = async (time, secret = key) => ({ ...(await provider.sign(body(time), time, secret, query(body(time)))) });
  const send = (headers, text = body(NOW), asked = query(body(NOW))) => post(source, asked, type, headers, text);

  const statuses = {};
  const good = await signFor(NOW);
  statuses.good = await send(good);
  statuses.again = await send(good);
  if (!provider.unsigned) {
    const changed = bytes(body(NOW));
    changed[changed.length - 3] ^= 1;
    statuses.body = await send(good, Buffer.from(changed));
  }
  if (provider.timed) {
    for (const [when, time] of Object.entries({ old: NOW - HOUR, future: NOW + HOUR })) {
      statuses[when] = await send(await signFor(time), body(time), query(body(time)));
    }
  }
  statuses.wrong = await send(await signFor(NOW, keys[`${name}:other`] ?? other));
  for (const header of signed) {
    const { [header]: value, ...rest } = good;
    statuses[`without ${header}`] = await send(rest);
    // authorization is one of the few that node does not send twice.
    if (header !== "authorization") statuses[`twice ${header}`] = await send({ ...rest, [header]: [value, value] });
  }
  if (id) statuses.replay = await send({ ...good, [id]: "fresh" });
  return [name, statuses];
}

setAbstractRuntimeString(() => "node");
const used = Object.entries(providers).filter(([name]) => keys[name]);
const told = await Promise.all(used.map(([name, provider]) => run(name, provider)));
console.log(JSON.stringify(Object.fromEntries(told)));
process.exit(0);

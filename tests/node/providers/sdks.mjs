// The providers with an SDK on npm: each delivery is signed by it, or at least approved by its verifier.
//
// Each has the body, its headers for a body at a time (in seconds) by a secret, those that sign, and what of it can be tried:
// `timed` where a time is signed; `id`, the header that holds the id, or `fresh`, the id in the body and another.
import { createHmac, createPrivateKey, sign as signWith } from "node:crypto";
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
import { Webhook as Svix } from "svix";
import twilio from "twilio";

const hmac = (key, text, encoding) => createHmac("sha256", key).update(text).digest(encoding);

function approved(yes, provider) {
  if (!yes) throw new Error(`${provider}'s SDK does not approve of what we sign`);
}

// A sender of Standard Webhooks, by either package.
const standard = (Webhook, prefix) => ({
  body: JSON.stringify({ type: "invoice.paid", data: { id: "in_1" } }),
  id: `${prefix}-id`,
  sign: (body, time, key) => ({
    [`${prefix}-id`]: "msg_1",
    [`${prefix}-timestamp`]: `${time}`,
    [`${prefix}-signature`]: new Webhook(key).sign("msg_1", new Date(time * 1000), body),
  }),
  signed: [`${prefix}-id`, `${prefix}-timestamp`, `${prefix}-signature`],
  timed: true,
  other: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
});

export function sdks(hooks, NOW) {
  setAbstractRuntimeString(() => "node");
  return {
    "standard-webhooks": standard(Standard, "webhook"),
    svix: standard(Svix, "svix"),
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
      ...standard(Standard, "webhook"),
      body: JSON.stringify({ object_kind: "push" }),
      sign: (body, time, key) => ({
        "x-gitlab-event": "Push Hook",
        ...standard(Standard, "webhook").sign(body, time, key),
      }),
    },
    stripe: {
      body: JSON.stringify({ id: "evt_1", type: "invoice.paid", data: { object: { id: "in_1" } } }),
      fresh: ["evt_1", "evt_2"],
      sign: (payload, timestamp, secret) => ({
        "stripe-signature": new Stripe("sk_test_1").webhooks.generateTestHeaderString({ payload, secret, timestamp }),
      }),
      signed: ["stripe-signature"],
      timed: true,
    },
    slack: {
      body: JSON.stringify({ type: "event_callback", event_id: "Ev1", event: { type: "message", channel: "C1" } }),
      fresh: ["Ev1", "Ev2"],
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
      fresh: ["interaction-1", "interaction-2"],
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
      fresh: ["sg-1", "sg-3"],
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
      fresh: ["sq-1", "sq-2"],
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
      fresh: ["pd-1", "pd-2"],
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
      fresh: ["100", "102"],
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
      fresh: ["n-1", "n-2"],
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
}

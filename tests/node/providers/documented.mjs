// The providers whose SDKs neither sign nor verify: signed here, apart from Nerve, as their documentation says.
//
// The members are those of sdks.mjs.
import { createHmac } from "node:crypto";

const mac = (key, text, encoding, hash = "sha256") => createHmac(hash, key).update(text).digest(encoding);

export function documented(NOW) {
  return {
    pagerduty: {
      body: JSON.stringify({ event: { id: "pd-1", event_type: "incident.triggered", data: { id: "P1" } } }),
      fresh: ["pd-1", "pd-2"],
      // While a secret is rotated there are two, of which one is ours.
      sign: (body, _, key) => ({ "x-pagerduty-signature": `v1=${"0".repeat(64)},v1=${mac(key, body, "hex")}` }),
      signed: ["x-pagerduty-signature"],
    },
    zendesk: {
      body: JSON.stringify({ type: "zen:event-type:ticket.created", subject: "zen:ticket:1" }),
      id: "x-zendesk-webhook-invocation-id",
      sign: (body, time, key) => {
        const at = new Date(time * 1000).toISOString();
        return {
          "x-zendesk-webhook-invocation-id": "zd-1",
          "x-zendesk-webhook-signature-timestamp": at,
          "x-zendesk-webhook-signature": mac(key, at + body, "base64"),
        };
      },
      signed: ["x-zendesk-webhook-signature", "x-zendesk-webhook-signature-timestamp"],
      timed: true,
    },
    meta: {
      body: JSON.stringify({ object: "page", entry: [{ id: "1", changes: [{ field: "feed", value: {} }] }] }),
      sign: (body, _, key) => ({ "x-hub-signature-256": `sha256=${mac(key, body, "hex")}` }),
      signed: ["x-hub-signature-256"],
    },
    intercom: {
      body: JSON.stringify({ id: "notif_1", topic: "conversation.user.created", data: { item: { id: "9" } } }),
      fresh: ["notif_1", "notif_2"],
      sign: (body, _, key) => ({ "x-hub-signature": `sha1=${mac(key, body, "hex", "sha1")}` }),
      signed: ["x-hub-signature"],
    },
    typeform: {
      body: JSON.stringify({ event_id: "tf-1", event_type: "form_response", form_response: { form_id: "f1" } }),
      fresh: ["tf-1", "tf-2"],
      sign: (body, _, key) => ({ "typeform-signature": `sha256=${mac(key, body, "base64")}` }),
      signed: ["typeform-signature"],
    },
    calendly: {
      body: JSON.stringify({ event: "invitee.created", payload: { uri: "https://calendly.example/1" } }),
      sign: (body, time, key) => ({
        "calendly-webhook-signature": `t=${time},v1=${mac(key, `${time}.${body}`, "hex")}`,
      }),
      signed: ["calendly-webhook-signature"],
      timed: true,
    },
    zoom: {
      body: JSON.stringify({ event: "meeting.started", payload: { object: { id: "1" } }, event_ts: NOW }),
      sign: (body, time, key) => ({
        "x-zm-request-timestamp": `${time}`,
        "x-zm-signature": `v0=${mac(key, `v0:${time}:${body}`, "hex")}`,
      }),
      signed: ["x-zm-request-timestamp", "x-zm-signature"],
      timed: true,
    },
    sentry: {
      body: JSON.stringify({ action: "created", data: { issue: { id: "1" } } }),
      id: "request-id",
      sign: (body, _, key) => ({
        "request-id": "se-1",
        "sentry-hook-resource": "issue",
        "sentry-hook-signature": mac(key, body, "hex"),
      }),
      signed: ["sentry-hook-signature"],
    },
    jira: {
      body: JSON.stringify({ webhookEvent: "jira:issue_updated", issue: { key: "N-1" } }),
      id: "x-atlassian-webhook-identifier",
      sign: (body, _, key) => ({
        "x-atlassian-webhook-identifier": "ji-1",
        "x-hub-signature": `sha256=${mac(key, body, "hex")}`,
      }),
      signed: ["x-hub-signature"],
    },
    docusign: {
      body: JSON.stringify({ event: "envelope-completed", data: { envelopeId: "e-1" } }),
      sign: (body, _, key) => ({ "x-docusign-signature-1": mac(key, body, "base64") }),
      signed: ["x-docusign-signature-1"],
    },
  };
}

// Sends every payload of @octokit/webhooks-examples as GitHub would, signed by @octokit/webhooks.
//
// node github.mjs URL SECRET [PACE_MS]
//
// 32 deliveries are in flight at a time; a refused connection or a 503 is tried again with the same delivery
// id, as a redelivery would be, for two minutes at most. Each sender waits PACE_MS between two deliveries.
// Prints one line of JSON: {"sent", "attempts", "statuses": {"202": …}}; exit 1 if any delivery was given up.
import { createHash } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { Webhooks } from "@octokit/webhooks";
import examples from "@octokit/webhooks-examples" with { type: "json" };

const CONCURRENCY = 32;
const PATIENCE_MS = 120_000;

const [url, secret, pace = "0"] = process.argv.slice(2);
const webhooks = new Webhooks({ secret });
const deliveries = examples.flatMap(({ name, examples }) => examples.map((payload) => ({ name, payload })));
const statuses = {};
let attempts = 0;
let next = 0;

async function deliver({ name, payload }, index) {
  const body = JSON.stringify(payload);
  // GitHub's ids are UUIDs; these are the same in every run.
  const hex = createHash("sha256").update(`${index}`).digest("hex");
  const id = hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12}).*$/, "$1-$2-$3-$4-$5");
  const headers = {
    "content-type": "application/json",
    "user-agent": "GitHub-Hookshot/044aadd",
    "x-github-event": name,
    "x-github-delivery": id,
    "x-hub-signature-256": await webhooks.sign(body),
  };
  const deadline = Date.now() + PATIENCE_MS;
  for (;;) {
    attempts += 1;
    let status = "unreachable";
    try {
      const response = await fetch(url, { method: "POST", headers, body, signal: AbortSignal.timeout(30_000) });
      await response.arrayBuffer();
      status = response.status;
    } catch {
      // Refused or cut: the gateway is away.
    }
    if ((status !== 503 && status !== "unreachable") || Date.now() > deadline) {
      statuses[status] = (statuses[status] ?? 0) + 1;
      return;
    }
    await sleep(100);
  }
}

async function sender() {
  while (next < deliveries.length) {
    const index = next++;
    await deliver(deliveries[index], index);
    await sleep(Number(pace));
  }
}

await Promise.all(Array.from({ length: CONCURRENCY }, sender));
console.log(JSON.stringify({ sent: deliveries.length, attempts, statuses }));
const accepted = Object.entries(statuses).every(([status]) => status.startsWith("2"));
process.exit(accepted ? 0 : 1);

import assert from "node:assert/strict";
import { test } from "node:test";
import { handle } from "./labels.mjs";

const call = (payload) => handle({ data: Buffer.from(typeof payload === "string" ? payload : JSON.stringify(payload)) });
const issue = (title, body, more = {}) => ({ action: "opened", issue: { number: 1, title, body, labels: [] }, ...more });
const labels = (payload) => call(payload).flatMap(({ data }) => JSON.parse(Buffer.from(data).toString()).labels);

test("what an author wrote suggests labels", () => {
  assert.deepEqual(labels(issue("How do I run it?", "see the readme")), ["docs", "question"]);
  assert.deepEqual(labels(issue("It stopped", "Traceback (most recent call last)\n  File")), ["bug"]);
  assert.deepEqual(labels(issue("CVE-2024-12345 in foo", null)), ["security"]);
  const pull_request = { number: 2, title: "fix(parser)!: café", body: "", additions: 400, deletions: 200 };
  assert.deepEqual(labels({ action: "opened", pull_request }), ["bug", "breaking", "size/large"]);
});

test("somebody else's words suggest nothing", () => {
  assert.deepEqual(labels(issue("Hello", "> it is slow\n```\ncrash\n```\nhttps://example.com/docs")), []);
  assert.deepEqual(labels(issue("toString: a title", "")), []);
});

test("labels that are there, and actions that change no text, are left alone", () => {
  const labeled = issue("A typo", "");
  labeled.issue.labels = [{ name: "Docs" }];
  assert.deepEqual(call(labeled), []);
  assert.deepEqual(call(issue("A typo", "", { action: "labeled" })), []);
});

test("a body that can never be labeled is invalid", () => {
  for (const body of ["{", "{}", "null", '"\xff']) assert.throws(() => call(body), { tag: "invalid" });
  assert.throws(() => handle({ data: Uint8Array.of(0x22, 0xc3, 0x22) }), { tag: "invalid", val: /UTF-8/ });
});

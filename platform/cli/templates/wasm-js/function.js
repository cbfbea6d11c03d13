// Called once per event in a fresh instance: calls share no memory.
import { log } from "nerve:function/host@0.1.0";

export function handle(event) {
  let data;
  try {
    data = JSON.parse(fromUtf8(event.data));
  } catch (error) {
    // A permanent failure: dead-lettered immediately. The tag "retry" requests a retry.
    throw { tag: "invalid", val: `the body is not JSON: ${error.message}` };
  }
  log("info", `answering ${event.id}`);
  return [emit("demo.answered", { hello: data.name ?? "you" })];
}

// Creates an event to publish; `emits` in nerve.toml must cover its type.
function emit(type, data) {
  return { type, data: toUtf8(JSON.stringify(data)), contentType: undefined, subject: undefined, partitionKey: undefined };
}

// QuickJS has neither TextDecoder nor TextEncoder; these functions throw on invalid UTF-8.
function fromUtf8(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length; at += 4096) {
    text += String.fromCharCode(...bytes.subarray(at, at + 4096));
  }
  return decodeURIComponent(escape(text));
}

function toUtf8(text) {
  return Uint8Array.from(unescape(encodeURIComponent(text)), (character) => character.charCodeAt(0));
}

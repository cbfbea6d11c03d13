// Called once an event, in an instance of its own: nothing that is left in memory reaches the next call.
import { log } from "nerve:function/host@0.1.0";

export function handle(event) {
  let data;
  try {
    data = JSON.parse(fromUtf8(event.data));
  } catch (error) {
    // Never succeeds: a dead letter at once. With the tag "retry" it is tried again by the schedule.
    throw { tag: "invalid", val: `the body is not JSON: ${error.message}` };
  }
  log("info", `answering ${event.id}`);
  return [emit("demo.answered", { hello: data.name ?? "you" })];
}

// An event to publish; its type must be covered by `emits` in nerve.toml.
function emit(type, data) {
  return { type, data: toUtf8(JSON.stringify(data)), contentType: undefined, subject: undefined, partitionKey: undefined };
}

// QuickJS has neither TextDecoder nor TextEncoder; these throw on what is not UTF-8.
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

// Listens to an SSE stream with the `eventsource` package until it has seen COUNT events.
//
// node listen.mjs URL COUNT
//
// Prints `open` once connected for the first time, then one line of JSON:
// {"ids": […], "data": […the events' `data`…], "gaps": […], "opens": n}; exit 1 if the client gave up.
import { EventSource } from "eventsource";

const [url, count] = process.argv.slice(2);
const seen = { ids: [], data: [], gaps: [], opens: 0 };

// The server asks clients to wait a second before they come back. That is not what is tested here, so it is
// shortened on its way.
async function impatient(input, init) {
  const response = await fetch(input, init);
  if (!response.ok) return response;
  let first = true;
  const body = response.body.pipeThrough(
    new TransformStream({
      transform(chunk, controller) {
        const text = new TextDecoder().decode(chunk);
        const asked = first && /^retry: \d+\n/.test(text);
        controller.enqueue(asked ? new TextEncoder().encode(text.replace(/^retry: \d+/, "retry: 50")) : chunk);
        first = false;
      },
    }),
  );
  const { url, redirected, status, headers } = response;
  return { url, redirected, status, headers, body };
}

const source = new EventSource(url, { fetch: impatient });
source.onopen = () => {
  seen.opens += 1;
  if (seen.opens === 1) console.log("open");
};
source.addEventListener("gap", (event) => seen.gaps.push(event.data));
source.onmessage = (event) => {
  seen.ids.push(Number(event.lastEventId));
  seen.data.push(JSON.parse(event.data).data);
  if (seen.ids.length >= Number(count)) finish(0);
};
source.onerror = (error) => {
  if (source.readyState === EventSource.CLOSED) {
    console.error(`gave up: ${error.code} ${error.message}`);
    finish(1);
  }
};

function finish(code) {
  source.close();
  process.stdout.write(`${JSON.stringify(seen)}\n`, () => process.exit(code));
}

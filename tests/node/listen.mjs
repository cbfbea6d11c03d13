// Listens to an SSE stream with the `eventsource` package until it has seen COUNT events.
//
// node listen.mjs URL COUNT
//
// Prints `open` once connected for the first time, then one line of JSON:
// {"ids": […], "data": […the events' `data`…], "gaps": […], "opens": n}; exit 1 if the client gave up.
import { EventSource } from "eventsource";

const [url, count] = process.argv.slice(2);
const seen = { ids: [], data: [], gaps: [], opens: 0 };

// The standard's first wait of 3 s is not what is tested: each response starts with a shorter one.
const RETRY = new TextEncoder().encode("retry: 50\n\n");
async function impatient(input, init) {
  const response = await fetch(input, init);
  if (!response.ok) return response;
  let first = true;
  const body = response.body.pipeThrough(
    new TransformStream({
      transform(chunk, controller) {
        if (first) controller.enqueue(RETRY);
        first = false;
        controller.enqueue(chunk);
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

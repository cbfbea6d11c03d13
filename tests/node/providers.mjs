// Sends webhooks of every provider that signs with a secret or a key pair, by the provider's SDK or documentation.
//
// node providers.mjs HOOKS KEYS [TO HEADERS]
//
// HOOKS is the URL that the sources' names follow, as the provider knows it; KEYS is JSON: the secret of each source that
// there is. TO is where the gateway really is, and HEADERS, JSON, what a proxy before it adds. Each provider sends one good
// delivery, the same again, and then each of: the body changed by a byte, an old and a future time (where a time is signed),
// another secret, each header that signs left out and doubled, and the same under a fresh id (where it has one).
// Prints one line of JSON: {"<provider>": {"<case>": status}}.
import http from "node:http";
import { documented } from "./providers/documented.mjs";
import { sdks } from "./providers/sdks.mjs";

const [hooks, keysText, to = hooks, headersText = "{}"] = process.argv.slice(2);
const [keys, added] = [JSON.parse(keysText), JSON.parse(headersText)];
const NOW = Math.floor(Date.now() / 1000);
const HOUR = 3600;

function post(source, query, headers, body) {
  return new Promise((resolve, reject) => {
    const fields = { host: new URL(hooks).host, ...headers, ...added, "content-length": Buffer.byteLength(body) };
    // In a flat list any header may stand twice; in an object some may not.
    const list = Object.entries(fields).flatMap(([name, values]) => [values].flat().flatMap((value) => [name, `${value}`]));
    const request = http.request(`${to}/${source}${query}`, { method: "POST", headers: list }, (response) => {
      response.resume();
      response.on("end", () => resolve(response.statusCode));
    });
    request.on("error", reject);
    request.end(body);
  });
}

function changedByAByte(text) {
  const bytes = Uint8Array.from(Buffer.from(text));
  bytes[bytes.length - 3] ^= 1;
  return Buffer.from(bytes);
}

async function run(name, provider) {
  const { source = name, type = "application/json", other = "another secret", signed, id } = provider;
  const bodyFor = (time) => (typeof provider.body === "function" ? provider.body(time) : provider.body);
  const queryFor = (body) => (provider.query ? provider.query(body) : "");
  const make = async (time, key) => {
    const body = bodyFor(time);
    const query = queryFor(body);
    return { body, query, headers: { "content-type": type, ...(await provider.sign(body, time, key, query)) } };
  };
  const send = ({ headers, body, query }) => post(source, query, headers, body);

  const key = keys[name];
  const good = await make(NOW, key);
  const statuses = { good: await send(good), again: await send(good) };
  if (!provider.unsigned) statuses.body = await send({ ...good, body: changedByAByte(good.body) });
  if (provider.timed) {
    statuses.old = await send(await make(NOW - HOUR, key));
    statuses.future = await send(await make(NOW + HOUR, key));
  }
  statuses.wrong = await send(await make(NOW, keys[`${name}:other`] ?? other));
  for (const header of signed) {
    const { [header]: value, ...rest } = good.headers;
    statuses[`without ${header}`] = await send({ ...good, headers: rest });
    statuses[`twice ${header}`] = await send({ ...good, headers: { ...rest, [header]: [value, value] } });
  }
  if (id) statuses.replay = await send({ ...good, headers: { ...good.headers, [id]: "fresh" } });
  if (provider.fresh) statuses.replay = await send({ ...good, body: good.body.replace(...provider.fresh) });
  return [name, statuses];
}

const providers = Object.entries({ ...sdks(hooks, NOW), ...documented(NOW) }).filter(([name]) => keys[name]);
const told = await Promise.all(providers.map(([name, provider]) => run(name, provider)));
console.log(JSON.stringify(Object.fromEntries(told)));
process.exit(0);

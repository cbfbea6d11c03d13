// Writes examples out of @octokit/webhooks-examples, one file a name.
//
// node payloads.mjs FOLDER EVENT[.ACTION]…
import { mkdir, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";

const [folder, ...names] = process.argv.slice(2);
const examples = createRequire(new URL("../tests/node/package.json", import.meta.url))("@octokit/webhooks-examples");

await mkdir(folder, { recursive: true });
for (const name of names) {
  const [event, action] = name.split(".");
  const found = examples.find((group) => group.name === event)?.examples.find((payload) => payload.action === action);
  if (!found) throw new Error(`@octokit/webhooks-examples has no ${name}: see its index.json for what it has`);
  await writeFile(`${folder}/${name}.json`, JSON.stringify(found));
}

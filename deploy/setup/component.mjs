// Makes a component of a core module that follows the canonical ABI, as wasm-tools' `component embed` and `new` do.
//
// node component.mjs CORE.wasm WIT WORLD OUT.wasm
import { readFile, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";

const [core, wit, world, out] = process.argv.slice(2);
const tools = createRequire(new URL("../../.tools/node/package.json", import.meta.url));
const { componentEmbed, componentNew } = await import(tools.resolve("@bytecodealliance/jco"));

const binary = await readFile(core);
const embedded = await componentEmbed({ binary, witSource: await readFile(wit, "utf8"), world });
await writeFile(out, await componentNew(embedded, []));

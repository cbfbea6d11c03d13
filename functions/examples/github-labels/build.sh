#!/usr/bin/env bash
# Makes a component of labels.mjs, on the QuickJS engine.
set -euo pipefail
cd "$(dirname "$0")"
root=$(cd ../../.. && pwd)
mkdir -p build

"$root/.tools/node/node_modules/.bin/jco" componentize labels.mjs --wit "$root/functions/wit" --world-name function \
  --backend quickjs --backend-qjs-disable-async --backend-qjs-stub-wasi -o build/github-labels.wasm

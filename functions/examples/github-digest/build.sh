#!/usr/bin/env bash
# Compiles digest.c for wasm32, then makes a component of it. The same tools give the same bytes.
set -euo pipefail
cd "$(dirname "$0")"
root=$(cd ../../.. && pwd)
mkdir -p build

"$root/.tools/venv/bin/python" -m ziglang cc -target wasm32-freestanding -Os -nostdlib -fno-builtin -fno-sanitize=all \
  -Wall -Wextra -Werror -Wl,--no-entry -Wl,--strip-all -Wl,-z,stack-size=65536 digest.c -o build/core.wasm
node "$root/deploy/setup/component.mjs" build/core.wasm "$root/functions/wit/nerve.wit" function github-digest.wasm
rm build/core.wasm

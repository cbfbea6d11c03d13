#!/usr/bin/env bash
# Makes a component of app.py with CPython inside: 18 MB, so it is never committed.
set -euo pipefail
cd "$(dirname "$0")"
root=$(cd ../../.. && pwd)
mkdir -p build

"$root/.tools/venv/bin/componentize-py" -d "$root/functions/wit" -w function componentize app -o build/text-keywords.wasm

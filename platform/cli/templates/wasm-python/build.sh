#!/bin/sh
# Builds app.py into a component that contains CPython (18 MB), with componentize-py in a virtual environment.
set -eu
cd "$(dirname "$0")"
[ -x .venv/bin/componentize-py ] || { python3 -m venv .venv && .venv/bin/pip install --quiet componentize-py==0.25.1; }
mkdir -p build
.venv/bin/componentize-py -d wit -w function componentize app -o build/function.wasm

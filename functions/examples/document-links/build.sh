#!/usr/bin/env bash
# Compiles to a component; needs the target once: rustup target add wasm32-wasip2
set -euo pipefail
cd "$(dirname "$0")"
cargo build --release --locked --target wasm32-wasip2

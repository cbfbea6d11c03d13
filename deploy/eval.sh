#!/usr/bin/env bash
# Questions with known pages to a real manual: PostgreSQL 15's, 1,170 pages in HTML, as Debian packages it.
#
# Prints what `nerve eval` prints. Keeps the manual in .tools and the index in .nerve-eval, so a second run only asks;
# listens on free ports of 127.0.0.1, and leaves nothing running.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PWD/.tools/bin:$PATH

PACKAGE=postgresql-doc-15
QUESTIONS=tests/fixtures/rag/postgresql-15.jsonl
data=$PWD/.nerve-eval manual=$PWD/.tools/$PACKAGE

give_up() {
  echo "eval: $*" >&2
  exit 1
}

deploy/setup.sh nats onnxruntime model
cargo build --release --locked -p nerve-cli
nerve=$PWD/target/release/nerve

if [ ! -d "$manual" ]; then
  command -v apt-get >/dev/null || give_up "the manual is Debian's package $PACKAGE, and there is no apt-get here. Unpack it into $manual."
  rm -rf "$manual.making"
  mkdir -p "$manual.making"
  (cd "$manual.making" && apt-get download -qq $PACKAGE && dpkg-deb -x ./*.deb .) ||
    give_up "\`apt-get download $PACKAGE\` failed as shown. \`apt-get update\` may help."
  mv "$manual.making/usr/share/doc/$PACKAGE/html" "$manual"
  rm -rf "$manual.making"
fi

mkdir -p "$data"
"$nerve" up --data "$data" --listen 127.0.0.1:0 --nats-listen 127.0.0.1:0 >"$data/up.log" 2>&1 &
up=$!
trap 'kill -TERM $up 2>/dev/null || true; wait $up 2>/dev/null || true' EXIT
for _ in $(seq 300); do
  "$nerve" list --data "$data" >/dev/null 2>&1 && break
  kill -0 $up 2>/dev/null || give_up "\`nerve up\` ended: see $data/up.log."
  sleep 0.1
done

[ -e "$data/ingested" ] || "$nerve" ingest "$manual" --data "$data" --patience 10m
touch "$data/ingested"
"$nerve" eval $QUESTIONS --data "$data"

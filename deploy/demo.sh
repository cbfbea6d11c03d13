#!/usr/bin/env bash
# GitHub webhooks pass through a real NATS JetStream into deployed functions, and the results stream out.
#
# It installs what it needs into .tools, keeps its data in a temporary folder, listens on free ports of 127.0.0.1,
# and leaves nothing running. Exit code 0 only if every result came.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PWD/.tools/bin:$PWD/target/release:$PATH

START_SECONDS=60
RESULT_SECONDS=120

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
note() { printf '  %s\n' "$*"; }
give_up() {
  echo "demo: $*" >&2
  exit 1
}
need() { command -v "$1" >/dev/null || give_up "there is no $1 on the PATH. Install $2, then run \`make demo\` again."; }

data=$(mktemp -d "${TMPDIR:-/tmp}/nerve-demo.XXXXXX")
up_pid='' tail_pid=''
stop() {
  local status=$?
  trap - EXIT INT TERM
  [ -z "$tail_pid" ] || kill "$tail_pid" 2>/dev/null || true
  if [ -n "$up_pid" ] && kill -TERM "$up_pid" 2>/dev/null; then
    for _ in $(seq 150); do
      kill -0 "$up_pid" 2>/dev/null || break
      sleep 0.1
    done
    kill -KILL "$up_pid" 2>/dev/null || true
  fi
  wait 2>/dev/null || true
  if [ $status -ne 0 ] && [ -s "$data/up.log" ]; then
    echo "demo: the last lines of \`nerve up\`:" >&2
    tail -n 20 "$data/up.log" | sed 's/^/  | /' >&2
  fi
  rm -rf "$data"
  exit $status
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

need cargo "Rust 1.95 or newer (rustup)"
need curl curl
if command -v openssl >/dev/null; then
  sign() { openssl dgst -sha256 -hmac "$secret" <"$1" | sed 's/^.* //'; }
else
  need python3 "openssl or python3"
  sign() { python3 -c 'import hashlib, hmac, sys; print(hmac.new(sys.argv[1].encode(), open(sys.argv[2], "rb").read(), hashlib.sha256).hexdigest())' "$secret" "$1"; }
fi

say "1. Tools: a pinned nats-server, and what builds the guests, into .tools"
deploy/setup.sh nats
deploy/setup.sh --optional tests

say "2. The nerve binary (the first time takes some minutes)"
cargo build --release --locked -p nerve-cli

say "3. The guests, each in its own language"
deploy/guests.sh --optional

# What can be deployed: a guest that is not built here was named above.
examples=functions/examples
functions=(github-digest)
[ ! -f $examples/github-labels/build/github-labels.wasm ] || functions+=(github-labels)
[ ! -f $examples/text-keywords/build/text-keywords.wasm ] || functions+=(text-keywords)
if command -v python3 >/dev/null; then
  functions+=(word-count)
else
  note "word-count is left out, as there is no python3 on the PATH."
fi

say "4. nerve up: NATS with JetStream, the gateway and a worker"
export NERVE_DATA_DIR=$data/nerve
unset NERVE_NATS_URL NERVE_NATS_CREDS
nerve up --data "$NERVE_DATA_DIR" --listen 127.0.0.1:0 --output json >"$data/up.json" 2>"$data/up.log" &
up_pid=$!
gateway=''
for _ in $(seq $((START_SECONDS * 10))); do
  gateway=$(sed -n 's/.*"gateway": *"\([^"]*\)".*/\1/p' "$data/up.json")
  [ -z "$gateway" ] || break
  kill -0 "$up_pid" 2>/dev/null || give_up "\`nerve up\` ended before it was ready."
  sleep 0.1
done
[ -n "$gateway" ] || give_up "\`nerve up\` was not ready within $START_SECONDS s."
note "gateway at $gateway"

say "5. A secret, a webhook source and ${#functions[@]} functions"
secret=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
printf %s "$secret" | nerve secrets set GITHUB_WEBHOOK_SECRET
for name in github-source "${functions[@]}"; do nerve deploy "$examples/$name"; done

# Everything that is published from here on, one line an event.
nerve tail --subject 'events.>' --from first >"$data/events.txt" &
tail_pid=$!

say "6. Webhooks, signed as GitHub signs them"
payloads=("$examples"/github-source/payloads/*.json)
if [ -d tests/node/node_modules/@octokit/webhooks-examples ]; then
  # GitHub's own examples, where npm could bring them; otherwise the three of ours do.
  node deploy/payloads.mjs "$data/payloads" push release.published star.created check_run.completed workflow_run.requested
  payloads+=("$data"/payloads/*.json)
fi
sent=0
for payload in "${payloads[@]}"; do
  event=$(basename "$payload" .json)
  status=$(curl --silent --show-error --max-time 30 --output "$data/answer" --write-out '%{http_code}' \
    --header 'Content-Type: application/json' --header "X-GitHub-Event: ${event%%.*}" \
    --header "X-GitHub-Delivery: demo-$sent" --header "X-Hub-Signature-256: sha256=$(sign "$payload")" \
    --data-binary "@$payload" "$gateway/hooks/github") || give_up "the webhook $event could not be sent to $gateway."
  case $status in
    2*) note "$status  $event" ;;
    *) give_up "the webhook $event was answered $status: $(cat "$data/answer")" ;;
  esac
  sent=$((sent + 1))
done
status=$(curl --silent --max-time 30 --output /dev/null --write-out '%{http_code}' --header 'X-GitHub-Event: push' \
  --header "X-Hub-Signature-256: sha256=$(printf %064d 0)" --data '{}' "$gateway/hooks/github")
[ "$status" = 401 ] || give_up "a webhook with a wrong signature was answered $status, not 401."
note "$status  one with a wrong signature: turned away"

# TYPE COUNT: what must come out.
expected=("event.digested $sent")
for name in "${functions[@]}"; do
  case $name in
    github-labels)
      expected+=("github.labels.suggested 2")
      # What it suggests is a github event as well, so it is digested, too.
      expected[0]="event.digested $((sent + 2))"
      ;;
    text-keywords) expected+=("text.keywords 1") ;;
    word-count)
      nerve publish document.uploaded --subject tides.json --data "@$examples/word-count/tides.json"
      expected+=("document.counted 1")
      ;;
  esac
done

say "7. Results, as \`nerve tail\` shows them"
came() { grep -c "  $1  " "$data/events.txt" || true; }
results='  (event\.digested|github\.labels\.suggested|text\.keywords|document\.counted)  '
shown=0
complete=no
for _ in $(seq $((RESULT_SECONDS * 5))); do
  complete=yes
  for pair in "${expected[@]}"; do [ "$(came "${pair% *}")" -ge "${pair#* }" ] || complete=no; done
  now=$(grep -cE "$results" "$data/events.txt" || true)
  [ "$now" -eq "$shown" ] || grep -E "$results" "$data/events.txt" | sed -n "$((shown + 1)),${now}p" | cut -c 1-200
  shown=$now
  [ $complete = no ] || break
  sleep 0.2
done

say "8. What passed where"
note "$sent webhooks -> gateway (signature checked) -> JetStream, stream EVENTS -> worker:"
for pair in "${expected[@]}"; do note "$(came "${pair% *}") of ${pair#* }  ${pair% *}"; done
if [ $complete = no ]; then
  # The data goes away with the demo, so what tells why is shown now.
  nerve dlq list >&2 || true
  nerve logs -n 20 >&2 || true
  give_up "not every result came within $RESULT_SECONDS s; dead letters and logs are above."
fi
printf '\nIt works. Now your own: `target/release/nerve up` in one terminal, and in another\n'
printf '`target/release/nerve new hello --template process-python && target/release/nerve deploy hello`.\n'

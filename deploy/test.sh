#!/usr/bin/env bash
# Every test, with cargo-nextest where it is installed. The last line counts them.
set -euo pipefail
cd "$(dirname "$0")/.."

# The guests' own tests: seconds, so first.
node --test functions/examples/github-labels
python3 -m unittest discover -s functions/examples/word-count

# The other tests start the binary. It is built with everything else: by itself it would have other features of what the tests
# share with it, and compile that twice.
cargo build --release --locked --workspace --all-targets

# Most tests wait for other processes most of the time.
threads=$((2 * $(nproc)))
if cargo nextest --version >/dev/null 2>&1; then
  exec cargo nextest run --release --locked --workspace --no-fail-fast --test-threads "$threads"
fi

# Without nextest: cargo prints one result a test binary, so they are added up.
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
# A test that hangs would otherwise hang this for good.
timeout --verbose 45m cargo test --release --locked --workspace --no-fail-fast -- --test-threads "$threads" 2>&1 | tee "$log" || status=$?
awk '/^test result:/ { passed += $4; failed += $6 } END { printf "%d passed, %d failed\n", passed, failed }' "$log"
exit $status

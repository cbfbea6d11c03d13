#!/usr/bin/env bash
# Builds the example functions that are compiled, each by its own build.sh, unless they are newer than their source.
#
#   deploy/guests.sh [--optional]
#
# With --optional a guest whose tools this machine cannot have is skipped with a sentence, and so is one that does
# not build; without, it is an error. document-links (Rust) is never built here: it wants a compiler with wasm32-wasip2.
set -euo pipefail
cd "$(dirname "$0")/.."

optional=()
[ "${1:-}" != --optional ] || optional=(--optional)

failed=no
# guest NAME PART FILE: the part of setup it is built with, and what its build.sh writes.
guest() {
  local folder=functions/examples/$1 part=$2 built=functions/examples/$1/$3 log
  if [ -f "$built" ] && [ -z "$(find "$folder" functions/wit -type f ! -path '*/build/*' ! -path '*/__pycache__/*' \
    ! -name nerve.toml ! -name '*.test.mjs' -newer "$built" -print -quit)" ]; then
    return 0
  fi
  # A component that is kept in git is as good as one built here.
  if [ ${#optional[@]} -gt 0 ] && git ls-files --error-unmatch "$built" >/dev/null 2>&1; then return 0; fi
  deploy/setup.sh ${optional[@]+"${optional[@]}"} "$part" || { failed=yes; return 0; }
  [ -f ".tools/.done-$part" ] || { echo "guests: $1 is left out, as it is built with $part." >&2; return 0; }
  echo "guests: building $1"
  log=$(mktemp)
  if ! "$folder/build.sh" >"$log" 2>&1; then
    tail -n 15 "$log" | sed 's/^/  | /' >&2
    echo "guests: $1 does not build, as shown. Run $folder/build.sh to see it again." >&2
    [ ${#optional[@]} -gt 0 ] || failed=yes
  fi
  rm -f "$log"
}

guest github-digest c github-digest.wasm
guest github-labels javascript build/github-labels.wasm
guest text-keywords python build/text-keywords.wasm
[ $failed = no ]

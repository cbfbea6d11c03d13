#!/usr/bin/env bash
# Runs the fuzz targets of tests/fuzz.
#
#   deploy/fuzz.sh run SECONDS [TARGET…]   each target for so long, one after another; all of them when none is named
#   deploy/fuzz.sh keep [TARGET…]          makes tests/fuzz/corpus out of the smallest inputs that reach as much
#
# A target starts from what is kept in tests/fuzz/corpus and tests/fuzz/crashes, and from what earlier runs found, which is in
# target/fuzz/found. An input that ends a target is written to target/fuzz/artifacts, and the run stops there.
# FUZZ_BUILD names another folder than target/fuzz.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PWD/.tools/bin:$PATH

# Limits of a target: memory, and the time that one input may take.
MEMORY_MIB=1024
INPUT_SECONDS=10
INPUT_BYTES=16384
# The stacks that the code has: a thread of a server, and helper processes.
STACK_KIB=2048
declare -A HELPER_STACK_KIB=([documents]=32768 [templates]=1024)
# What is kept of a target at most.
KEPT_FILES=150

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2; }

fuzz=tests/fuzz
build=${FUZZ_BUILD:-$PWD/target/fuzz}
[ $# -ge 1 ] || usage
verb=$1
shift
case $verb in
  run)
    [[ ${1:-} =~ ^[0-9]+$ ]] || usage
    seconds=$1
    shift
    ;;
  keep) ;;
  *) usage ;;
esac
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
  for file in "$fuzz"/fuzz_targets/*.rs; do targets+=("$(basename "$file" .rs)"); done
fi

# The versions of the crates are those of the binary.
cp Cargo.lock "$fuzz/Cargo.lock"
cargo fuzz build --fuzz-dir "$fuzz" --sanitizer none --no-cfg-fuzzing --codegen-units 16 --target-dir "$build"
programs=$(find "$build" -path '*/release/hooks' -type f -exec dirname {} \; | head -n 1)

# limited TARGET COMMAND…: the command with the target's limits.
limited() {
  local stack=${HELPER_STACK_KIB[$1]:-$STACK_KIB}
  shift
  (ulimit -s "$stack" -d $((MEMORY_MIB * 1024)) -c 0 && exec "$@")
}

# kept TARGET: the folders of inputs that are kept in git.
kept() {
  local folder
  for folder in "$fuzz/corpus/$1" "$fuzz/crashes/$1"; do [ ! -d "$folder" ] || echo "$folder"; done
}

run() {
  local target=$1 found=$build/found/$1 artifacts=$build/artifacts/$1/ options
  mkdir -p "$found" "$artifacts"
  options=(-rss_limit_mb=$MEMORY_MIB -timeout=$INPUT_SECONDS -max_len=$INPUT_BYTES -max_total_time="$seconds"
    -artifact_prefix="$artifacts" -print_final_stats=1)
  [ ! -f "$fuzz/dictionaries/$target.txt" ] || options+=(-dict="$fuzz/dictionaries/$target.txt")
  # What helper processes do may end them, which is why they are processes of their own: the target goes on after that.
  [ -z "${HELPER_STACK_KIB[$target]:-}" ] || options+=(-fork=1 -ignore_crashes=1 -ignore_timeouts=1 -ignore_ooms=1)
  echo "fuzz: $target, $seconds seconds"
  # shellcheck disable=SC2046
  limited "$target" "$programs/$target" "${options[@]}" "$found" $(kept "$target")
}

keep() {
  local target=$1 found=$build/found/$1 merged=$build/merged/$1 count
  rm -rf "$merged"
  mkdir -p "$merged" "$found"
  # shellcheck disable=SC2046
  limited "$target" "$programs/$target" -rss_limit_mb=$MEMORY_MIB -timeout=$INPUT_SECONDS -set_cover_merge=1 \
    "$merged" $(kept "$target") "$found"
  count=$(find "$merged" -type f | wc -l)
  rm -rf "$fuzz/corpus/$target"
  mkdir -p "$fuzz/corpus/$target"
  # Of too many every n-th by size, under the short names that the others have.
  find "$merged" -type f -printf '%s %p\n' | sort -n |
    awk -v most=$KEPT_FILES -v all="$count" 'all <= most || int(NR * most / all) > int((NR - 1) * most / all) { print $2 }' |
    while read -r file; do cp "$file" "$fuzz/corpus/$target/$(basename "$file" | cut -c 1-16)"; done
  echo "fuzz: $target keeps $((count < KEPT_FILES ? count : KEPT_FILES)) of $count inputs"
}

for target in "${targets[@]}"; do "$verb" "$target"; done

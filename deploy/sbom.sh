#!/usr/bin/env bash
# Writes target/sbom/nerve.cdx.json: what is in the nerve binary, and what it needs at run time, as CycloneDX.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PWD/.tools/bin:$PATH

# cargo-cyclonedx writes beside each Cargo.toml of the workspace.
name=nerve-sbom-$$
trap 'find . -name "$name.json" -not -path "./target/*" -delete' EXIT
cargo cyclonedx --manifest-path platform/cli/Cargo.toml --format json --spec-version 1.5 --no-build-deps --override-filename "$name" --all --quiet
mkdir -p target/sbom
mv "platform/cli/$name.json" target/sbom/nerve.cdx.json
.tools/venv/bin/python deploy/sbom/complete.py target/sbom/nerve.cdx.json

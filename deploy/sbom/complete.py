"""Completes the list of crates that cargo-cyclonedx wrote, and checks it.

    python complete.py BOM

Adds what Nerve needs at run time and is no crate: the programs, libraries and models that deploy/setup.sh installs, with their
versions from its lock files and the hashes of their files; and the hash of the binary where it is built. Then validates the
whole against CycloneDX's schema.
"""

import hashlib
import json
import re
import sys
from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "deploy" / "setup" / "python"
TOOLS = ROOT / ".tools"
MODEL = "all-MiniLM-L6-v2"


def sha256(file):
    with file.open("rb") as content:
        return {"alg": "SHA-256", "content": hashlib.file_digest(content, "sha256").hexdigest()}


def locked(part):
    """The package of a part of setup, and its version."""
    return re.match(r"(\S+)==(\S+)", (LOCKS / f"{part}.in").read_text()).groups()


def component(kind, name, part, license, file, description):
    package, version = locked(part)
    purl = f"pkg:pypi/{package}@{version}"
    parts = {
        "type": kind,
        "bom-ref": f"{purl}#{name}",
        "name": name,
        "version": version,
        "description": description,
        "licenses": [{"license": {"id": license}}],
        "purl": purl,
    }
    if file.exists():
        parts["hashes"] = [sha256(file)]
    return parts


def beside_the_binary():
    library = next((TOOLS / "lib").glob("libonnxruntime.*"), TOOLS / "absent")
    yield component("application", "nats-server", "nats", "Apache-2.0", TOOLS / "bin" / "nats-server", "the broker of nerve up")
    yield component("library", "onnxruntime", "onnxruntime", "MIT", library, "runs models; loaded when one is needed")
    for name in (MODEL, f"{MODEL}-int8"):
        file = TOOLS / "models" / name / "model.onnx"
        yield component("machine-learning-model", name, "weights", "Apache-2.0", file, "the default embedding model")


def main(file):
    bom = json.loads(file.read_text())
    nerve = bom["metadata"]["component"]
    binary = ROOT / "target" / "release" / "nerve"
    if binary.exists():
        nerve["hashes"] = [sha256(binary)]
    added = list(beside_the_binary())
    bom["components"] = bom.get("components", []) + added
    references = [one["bom-ref"] for one in added]
    bom["dependencies"] = bom.get("dependencies", []) + [{"ref": reference} for reference in references]
    for one in bom["dependencies"]:
        if one["ref"] == nerve["bom-ref"]:
            one["dependsOn"] = one.get("dependsOn", []) + references
    text = json.dumps(bom, indent=2)
    if error := JsonStrictValidator(SchemaVersion.from_version(bom["specVersion"])).validate_str(text):
        sys.exit(f"sbom: the list breaks the schema of CycloneDX: {str(error).splitlines()[0]}")
    file.write_text(text + "\n")
    print(f"sbom: {file.relative_to(ROOT)} lists {len(bom['components'])} components")


main(Path(sys.argv[1]).resolve())

"""Write what a lock installs as a bill of materials, CycloneDX 1.6 in JSON (`make sbom`).

    python -m scripts.sbom [--folder dist]

Names, versions and hashes are the lock's, so that they are those of every machine that installs it; licences are told
by the metadata of what is installed beside this script, where its version is the lock's. The same lock gives the same
file, but for the time, which is SOURCE_DATE_EPOCH where that is set (https://reproducible-builds.org/specs/).
"""

import argparse
import json
import os
import re
import tomllib
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from fgaif_ray import __version__
from scripts.check_pythons import LOCKS, Lock
from scripts.set_up import ROOT, locked_entries

SPECIFICATION: Final = "1.6"
HASH: Final = re.compile(r"--hash=sha256:([0-9a-f]{64})")
LICENCE_CLASSIFIER: Final = "License :: "
LONGEST_NAME: Final = 80
"""Of a licence: longer texts in the metadata are the licence itself."""

Part = dict[str, Any]


def package_url(name: str, version: str) -> str:
    """A package's purl, e.g. ``pkg:pypi/ray@2.60.0`` (https://github.com/package-url/purl-spec)."""
    return f"pkg:pypi/{canonicalize_name(name)}@{version}"


def licences(found: Distribution) -> list[Part]:
    """What a package's metadata tells of its licence, in CycloneDX's form; empty if nothing."""
    fields = found.metadata
    texts = [*fields.get_all("License-Expression", []), *fields.get_all("License", [])]
    text = texts[0].strip() if texts else ""
    try:
        return [{"expression": str(canonicalize_license_expression(text))}]
    except InvalidLicenseExpression:
        pass
    names = [
        one.rpartition(" :: ")[2] for one in fields.get_all("Classifier", []) if one.startswith(LICENCE_CLASSIFIER)
    ]
    names = [name for name in names if name != "OSI Approved"]
    if not names and text and "\n" not in text and len(text) <= LONGEST_NAME:
        names = [text]
    return [{"license": {"name": name}} for name in names]


def component(pin: str, entry: str) -> Part:
    """A package of a lock, in CycloneDX's form."""
    name, version = pin.split("==")
    url = package_url(name, version)
    part: Part = {"type": "library", "bom-ref": url, "name": name, "version": version, "purl": url}
    try:
        found = distribution(name)
    except PackageNotFoundError:
        found = None
    if found is not None and Version(found.version).public == Version(version).public and (told := licences(found)):
        part["licenses"] = told
    # Of all files of the version: which of them is installed depends on the machine.
    hashes = [{"alg": "SHA-256", "content": content} for content in HASH.findall(entry)]
    files: Part = {"type": "distribution", "url": f"https://pypi.org/project/{name}/{version}/#files"}
    part["externalReferences"] = [files | ({"hashes": hashes} if hashes else {})]
    return part


def bill_of_materials(lock: Lock) -> Part:
    """All packages of a lock, and which of them the project itself asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    components = [component(pin, entry) for pin, entry in locked_entries(lock.path).items()]
    references = {part["name"]: part["bom-ref"] for part in components}
    extras = [text for extra in lock.extras for text in project["optional-dependencies"][extra]]
    asked = {canonicalize_name(Requirement(text).name) for text in [*project["dependencies"], *extras]}
    root = package_url(project["name"], __version__)
    moment = int(os.environ.get("SOURCE_DATE_EPOCH") or datetime.now(UTC).timestamp())
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPECIFICATION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPECIFICATION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([root, components]))}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(moment, UTC).isoformat(),
            "component": {
                "type": "library",
                "bom-ref": root,
                "name": project["name"],
                "version": __version__,
                "description": project["description"],
                "purl": root,
                "licenses": [{"expression": project["license"]}],
            },
            "properties": [{"name": "fgaif-ray:lock", "value": lock.path.name}],
        },
        "components": components,
        "dependencies": [{"ref": root, "dependsOn": sorted(references[name] for name in asked if name in references)}],
    }


def write_sbom(path: Path, lock: Lock = LOCKS[0]) -> None:
    """Write the bill of materials of a lock; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(bill_of_materials(lock), indent=2) + "\n", encoding="utf-8")


def write_sboms(folder: Path) -> list[Path]:
    """Write a file for each lock into a folder, ``sbom-NAME.cdx.json``; what a release brings beside its wheel."""
    paths = [folder / f"sbom-{lock.path.stem}.cdx.json" for lock in LOCKS]
    for path, lock in zip(paths, LOCKS, strict=True):
        write_sbom(path, lock)
    return paths


def main(arguments: Sequence[str] | None = None) -> None:
    """Write them and say where they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "dist", help="where sbom-NAME.cdx.json goes")
    for path in write_sboms(parser.parse_args(arguments).folder):
        print(path)


if __name__ == "__main__":
    main()

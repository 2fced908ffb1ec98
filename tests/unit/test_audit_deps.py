"""`make audit-deps`, with a package index on loopback and with a database in a folder."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from scripts import audit_deps
from scripts.advisories import ask_index, read_database

WEAK = {"id": "PYSEC-2026-1", "aliases": ["CVE-2026-1"], "fixed_in": ["1.1"], "withdrawn": None}
SAME = {"id": "GHSA-1", "aliases": ["CVE-2026-1"], "fixed_in": ["1.1", "1.0.1"], "withdrawn": None}


class Index:
    """The JSON API of a package index; ``pages`` are its answers by path."""

    def __init__(self) -> None:
        self.pages: dict[str, Any] = {}
        pages = self.pages

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps(pages.get(self.path)).encode()
                self.send_response(200 if self.path in pages else 404)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/simple"

    def has(self, path: str, version: str, *vulnerabilities: dict[str, Any]) -> None:
        self.pages[f"/pypi/{path}/json"] = {"info": {"version": version}, "vulnerabilities": list(vulnerabilities)}


@pytest.fixture
def index() -> Iterator[Index]:
    index = Index()
    thread = threading.Thread(target=index.server.serve_forever, args=(0.01,))
    thread.start()
    yield index
    index.server.shutdown()
    thread.join()
    index.server.server_close()


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "small.lock"
    path.write_text("# A lock.\nalpha==1.0 \\\n    --hash=sha256:00\nbeta==2.0 \\\n    --hash=sha256:11\n")
    return path


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "database"


def write_record(database: Path, name: str, identifier: str, events: list[dict[str, str]], **more: Any) -> None:
    folder = database / "vulns" / name
    folder.mkdir(parents=True, exist_ok=True)
    affected = {"package": {"name": name}, "ranges": [{"type": "ECOSYSTEM", "events": events}]}
    record = {"id": identifier, "modified": "2026-11-01T00:00:00Z", "affected": [affected], **more}
    (folder / f"{identifier}.yaml").write_text(
        "\n".join(f"{key}: {json.dumps(value)}" for key, value in record.items())
    )


def audit(*arguments: object) -> int:
    return audit_deps.main([str(argument) for argument in arguments])


def test_an_advisory_with_a_fix_is_listed_and_fails(
    index: Index, lock: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index.has("alpha/1.0", "1.0", WEAK)
    index.has("beta/2.0", "2.0")
    assert audit("--lock", lock, "--index", index.url) == 1
    [row] = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("alpha")]
    assert row == ["alpha", "1.0", "small", "PYSEC-2026-1,", "CVE-2026-1", "1.1", "update"]


def test_without_a_fix_it_is_listed_and_passes(index: Index, lock: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index.has("alpha/1.0", "1.0", WEAK | {"fixed_in": []})
    index.has("beta/2.0", "2.0")
    assert audit("--lock", lock, "--index", index.url) == 0
    assert "no fix yet" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["PYSEC-2026-1", "CVE-2026-1"])
def test_one_that_is_known_by_any_name_passes_with_its_reason(
    index: Index, lock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    index.has("alpha/1.0", "1.0", WEAK)
    index.has("beta/2.0", "2.0")
    known = tmp_path / "known.yaml"
    known.write_text(f"{name}: its server is never started\n")
    assert audit("--lock", lock, "--index", index.url, "--known", known) == 0
    assert "known: its server is never started" in capsys.readouterr().out


def test_a_known_one_needs_a_reason(lock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = tmp_path / "known.yaml"
    known.write_text("PYSEC-2026-1:\n")
    assert audit("--lock", lock, "--known", known) == 2
    assert "say after PYSEC-2026-1 why" in capsys.readouterr().err


def test_a_known_one_that_applies_no_longer_is_named(
    index: Index, lock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index.has("alpha/1.0", "1.0")
    index.has("beta/2.0", "2.0")
    known = tmp_path / "known.yaml"
    known.write_text("PYSEC-2020-9: old\n")
    audit("--lock", lock, "--index", index.url, "--known", known)
    assert "applies no longer: PYSEC-2020-9" in capsys.readouterr().out


def test_packages_that_could_not_be_asked_are_named(
    index: Index, lock: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index.has("alpha", "1.0")  # of the newest version
    index.has("beta", "2.1", WEAK)  # of another than the locked one
    assert audit("--lock", lock, "--index", index.url) == 0
    out = capsys.readouterr().out
    assert "0 advisories on 1 of 2 locked packages" in out
    assert "Not asked" in out and "beta==2.0" in out


def test_one_package_alone_can_be_asked_for(index: Index, lock: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index.has("alpha/1.0", "1.0", WEAK)
    index.has("beta/2.0", "2.0")
    assert audit("--lock", lock, "--index", index.url, "--package", "beta") == 0
    assert "on 1 of 1 locked packages" in capsys.readouterr().out


def test_the_same_by_another_name_counts_once(index: Index) -> None:
    index.has("alpha/1.0", "1.0", WEAK, SAME)
    [advisory] = ask_index(index.url, ["alpha==1.0"]).advisories
    assert (advisory.names, advisory.fixed_in) == ({"PYSEC-2026-1", "GHSA-1", "CVE-2026-1"}, ("1.0.1", "1.1"))


def test_a_withdrawn_one_does_not_count(index: Index) -> None:
    index.has("alpha/1.0", "1.0", WEAK | {"withdrawn": "2026-11-02T00:00:00Z"})
    assert ask_index(index.url, ["alpha==1.0"]).advisories == ()


def test_without_a_network_it_is_one_sentence(lock: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit("--lock", lock, "--index", "http://user:hidden@127.0.0.1:9/simple") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "check the network" in said and "hidden" not in said


def test_an_index_without_advisories_is_not_a_clean_bill(
    index: Index, lock: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit("--lock", lock, "--index", index.url) == 2
    assert "no JSON API" in capsys.readouterr().err


def test_the_index_is_the_one_that_pip_is_configured_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UV_DEFAULT_INDEX", raising=False)
    monkeypatch.delenv("UV_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    assert audit_deps.configured_index() == "https://mirror.example/simple"


def test_uv_has_the_say_over_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UV_DEFAULT_INDEX", raising=False)
    monkeypatch.setenv("UV_INDEX_URL", "https://uv.example/simple")
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    assert audit_deps.configured_index() == "https://uv.example/simple"


@pytest.mark.parametrize(
    ("events", "affected"),
    [
        ([{"introduced": "0"}], True),
        ([{"introduced": "0"}, {"fixed": "1.0"}], False),
        ([{"introduced": "0"}, {"fixed": "1.0.post1"}], True),
        ([{"introduced": "0"}, {"last_affected": "1.0"}], True),
        ([{"introduced": "0"}, {"last_affected": "0.9"}], False),
        ([{"introduced": "1.1"}, {"fixed": "1.2"}], False),
        ([{"introduced": "0"}, {"fixed": "0.5"}, {"introduced": "0.9"}, {"fixed": "1.10"}], True),
    ],
)
def test_a_version_is_affected_within_the_ranges_of_a_record(
    database: Path, events: list[dict[str, str]], affected: bool
) -> None:
    write_record(database, "alpha", "PYSEC-2026-2", events)
    assert bool(read_database(database, ["alpha==1.0"]).advisories) == affected


def test_records_of_a_database_say_what_fixes_them(database: Path) -> None:
    write_record(database, "alpha", "PYSEC-2026-2", [{"introduced": "0"}, {"fixed": "1.2"}], aliases=["CVE-2026-2"])
    [advisory] = read_database(database, ["alpha==1.0"]).advisories
    assert (advisory.fixed_in, advisory.aliases) == (("1.2",), ("CVE-2026-2",))


def test_a_withdrawn_record_does_not_count(database: Path) -> None:
    write_record(database, "alpha", "PYSEC-2026-2", [{"introduced": "0"}], withdrawn="2026-11-02T00:00:00Z")
    assert read_database(database, ["alpha==1.0"]).advisories == ()


def test_it_says_how_old_the_database_is(database: Path, lock: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(database, "other", "PYSEC-2026-2", [{"introduced": "0"}])
    assert audit("--lock", lock, "--database", database) == 0
    assert "as of 2026-11-01" in capsys.readouterr().out


def test_a_folder_without_a_database_is_one_sentence(
    tmp_path: Path, lock: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit("--lock", lock, "--database", tmp_path) == 2
    assert "has no folder vulns" in capsys.readouterr().err


def test_reasons_of_the_project_can_be_read() -> None:
    assert all(audit_deps.known_advisories(audit_deps.KNOWN).values())

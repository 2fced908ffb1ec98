"""A release: what stands in its way, and what it writes; in a repository of its own."""

import datetime as dt
import json
import subprocess
import zipfile
from pathlib import Path

import pytest
import yaml
from support.paths import ROOT

from fgaif_ray import __version__
from scripts.release import ReleaseError, build_wheel, check_tree, git, main, release, unreleased, write_release

COPIED = ("CHANGELOG.md", "CITATION.cff", "fgaif_ray/__init__.py")
DATE = dt.date(2027, 1, 2)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The files that a release reads and writes, committed."""
    for name in COPIED:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    git(tmp_path, "config", "user.name", "A person")
    git(tmp_path, "config", "user.email", "person@example.org")
    commit(tmp_path)
    return tmp_path


def commit(tree: Path) -> None:
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "--message", "Files")


def test_a_clean_tree_of_this_version_can_be_released(tree: Path) -> None:
    check_tree(tree, __version__)


@pytest.mark.parametrize("version", ["next", "v0.1.0", "0.1"])
def test_another_spelling_or_version_is_refused(tree: Path, version: str) -> None:
    with pytest.raises(ReleaseError, match=r"is not a version|is written|raise it to 0\.1 "):
        check_tree(tree, version)


def test_what_is_not_committed_stands_in_the_way(tree: Path) -> None:
    (tree / "new.txt").write_text("new")
    with pytest.raises(ReleaseError, match="not committed"):
        check_tree(tree, __version__)


def test_a_version_is_tagged_once(tree: Path) -> None:
    git(tree, "tag", f"v{__version__}")
    with pytest.raises(ReleaseError, match="tagged already"):
        check_tree(tree, __version__)


def test_a_version_is_written_once(tree: Path) -> None:
    write_release(tree, __version__, DATE, tag=False)
    with pytest.raises(ReleaseError, match="has a section"):
        check_tree(tree, __version__)


def test_a_release_says_what_changed(tree: Path) -> None:
    (tree / "CHANGELOG.md").write_text("# Changelog\n\n## [Unreleased]\n\n## [0.0.1] - 2026-01-01\n\n- first\n")
    commit(tree)
    with pytest.raises(ReleaseError, match="is empty"):
        check_tree(tree, __version__)


def test_changes_go_below_the_version_and_new_ones_have_a_place(tree: Path) -> None:
    changes = unreleased(tree)
    write_release(tree, __version__, DATE, tag=False)
    text = (tree / "CHANGELOG.md").read_text()
    assert unreleased(tree) == ""
    assert f"## [Unreleased]\n\n## [{__version__}] - 2027-01-02\n\n{changes[:200]}" in text


def test_the_citation_names_version_and_date(tree: Path) -> None:
    write_release(tree, "0.2.0", DATE, tag=False)
    write_release(tree, "0.3.0", DATE + dt.timedelta(days=1), tag=False)
    cited = yaml.safe_load((tree / "CITATION.cff").read_text())
    assert (cited["version"], cited["date-released"]) == ("0.3.0", dt.date(2027, 1, 3))


@pytest.mark.parametrize("tag", [False, True])
def test_it_is_one_commit_and_tagged_where_that_is_asked_for(tree: Path, tag: bool) -> None:
    before = git(tree, "rev-parse", "HEAD")
    write_release(tree, __version__, DATE, tag)
    assert git(tree, "rev-parse", "HEAD~1") == before
    assert git(tree, "status", "--porcelain") == ""
    assert git(tree, "tag", "--list") == (f"v{__version__}" if tag else "")


def test_bills_of_materials_lie_beside_the_wheel(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / ".git" / "info" / "exclude").write_text("dist/\n")
    # Minutes each; the wheel has a test of its own.
    monkeypatch.setattr("scripts.release.build_wheel", lambda root: root / "dist" / "some.whl")
    monkeypatch.setattr("scripts.release.check_built", lambda root, wheel: None)
    release(tree, __version__, tag=False)
    found = {path.name: json.loads(path.read_text()) for path in (tree / "dist").iterdir()}
    assert set(found) == {"sbom-cpu.cdx.json", "sbom-gpu.cdx.json"}
    assert {bill["metadata"]["component"]["version"] for bill in found.values()} == {__version__}


def test_the_command_says_what_stands_in_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["next"]) == 2
    assert capsys.readouterr().err == "release: next is not a version: give one such as 0.2.0.\n"


@pytest.mark.slow
def test_the_wheel_holds_the_packages_and_nothing_else(tmp_path: Path) -> None:
    for name in ("fgaif_ray", "actors", "jobs", "configs", "pyproject.toml", "README.md", "LICENSE"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(tmp_path)], check=True)
    wheel = build_wheel(tmp_path)
    assert wheel.name == f"fgaif_ray-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as files:
        tops = {name.partition("/")[0] for name in files.namelist()}
    assert tops == {"fgaif_ray", "actors", "jobs", f"fgaif_ray-{__version__}.dist-info"}

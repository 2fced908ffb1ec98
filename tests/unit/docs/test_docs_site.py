"""The site is built strictly, whole, and loads nothing from elsewhere."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

EXTERNAL = re.compile(r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=\"(?:https?:)?//[^\"]*\"")


def build(config: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--config-file", str(config), "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    return folder


def pages(site: Path) -> dict[str, str]:
    return {str(path.relative_to(site)): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}


@pytest.mark.slow
class TestSite:
    def test_it_has_all_pages(self, site: Path) -> None:
        wanted = {f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")}
        wanted |= {"index.html", "contributing.html", "changelog.html"}
        wanted |= {f"reference/{name}.html" for name in ("commands", "configuration", "http", "python")}
        assert wanted <= pages(site).keys()

    def test_it_loads_nothing_from_elsewhere(self, site: Path) -> None:
        found = {name: EXTERNAL.findall(text) for name, text in pages(site).items()}
        assert {name: links for name, links in found.items() if links} == {}

    def test_the_python_reference_has_signatures_and_docstrings(self, site: Path) -> None:
        text = re.sub(r"<[^>]+>", "", pages(site)["reference/python.html"])
        for name in ("RewardClient", "reward_item", "TRLRewards", "split_segments", "Feedback", "place_rewards"):
            assert name in text
        assert "A reward that is unavailable is an exception, never a zero" in text

    def test_words_of_every_page_can_be_searched(self, site: Path) -> None:
        index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
        found = {entry["location"].partition("#")[0] for entry in index["docs"]}
        assert {name for name in pages(site) if name != "404.html"} <= found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[gone](gone.md)", "gone.md"),
        ("[gone](other.md#gone)", "#gone"),
        ("[absolute](/other.md)", "/other.md"),
        ("![gone](gone.png)", "gone.png"),
    ],
)
def test_a_broken_link_fails_the_build(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Page\n\n{text}\n")
    (tmp_path / "docs" / "other.md").write_text("# Other\n")
    changes = f"INHERIT: {ROOT}/mkdocs.yml\ndocs_dir: docs\nhooks: []\nplugins: []\n"
    (tmp_path / "mkdocs.yml").write_text(f"{changes}theme: {{name: mkdocs}}\nnav: [index.md, other.md]\n")
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0
    assert said in done.stderr

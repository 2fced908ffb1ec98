"""Files that a hosting site or an archive reads: they have the forms that these want."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from support.paths import ROOT

from fgaif_ray import __version__

TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
KINDS = {"checkboxes", "dropdown", "input", "markdown", "textarea"}
"""Of fields, https://docs.github.com/en/communities/using-templates-to-encourage-useful-issues-and-pull-requests."""


def test_the_citation_has_what_its_format_wants() -> None:
    """https://github.com/citation-file-format/citation-file-format, 1.2.0."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert cited["version"] == __version__
    assert cited["license"] == "Apache-2.0"
    [paper] = cited["references"]
    assert {"type", "title", "authors"} <= paper.keys() and "2404.05046" in paper["url"]


@pytest.mark.parametrize("path", [path for path in TEMPLATES if path.name != "config.yml"], ids=lambda path: path.stem)
def test_an_issue_form_has_what_its_format_wants(path: Path) -> None:
    form: dict[str, Any] = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= form.keys()
    assert {field["type"] for field in form["body"]} <= KINDS
    assert all(field["attributes"]["label"] for field in form["body"])
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids))
    assert any(field.get("validations", {}).get("required") for field in form["body"])

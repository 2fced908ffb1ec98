"""What mkdocs calls while it builds the site: pages of the top folder and of the code join those of `docs/`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pymdownx.slugs import slugify

from scripts.docs.commands import commands_page
from scripts.docs.configuration import configuration_page
from scripts.docs.http_api import describe_service, http_page
from scripts.docs.markdown import change_links, indent_lists, plain_pipes

ROOT: Final = Path(__file__).resolve().parents[2]
TOP_PAGES: Final = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Files of the top folder -> their pages."""
PYTHON_API: Final = {
    "fgaif_ray.serving.client": ("The client of the reward service", []),
    "fgaif_ray.adapters": (
        "Rewards for other trainers",
        ["trl", "openrlhf", "verl", "skyrl", "easyr1", "placement", "common"],
    ),
    "fgaif_ray.segments": ("Segments of a text", []),
    "fgaif_ray.records": ("Rows", ["response", "feedback", "facts", "images", "codes"]),
}
"""Public modules -> their headings, and the modules below them that are shown."""


def python_page() -> str:
    """The page of the Python API, which mkdocstrings fills in."""
    lines = ["# Python API", "", "What other programs may import. All of it has types.", ""]
    for module, (title, below) in PYTHON_API.items():
        lines += [f"## {title}", "", f"::: {module}", ""]
        for name in below:
            lines += [f"### {module}.{name}", "", f"::: {module}.{name}", ""]
    return "\n".join(lines)


def top_page(name: str) -> str:
    """A file of the top folder, its links seen from `docs/`."""

    def moved(words: str, target: str) -> tuple[str, str]:
        return words, TOP_PAGES.get(target) or target.removeprefix("docs/")

    return change_links((ROOT / name).read_text(encoding="utf-8"), moved)


def generated() -> dict[str, str]:
    """Content of all pages and files that are in no folder, by their path."""
    described = describe_service()
    return {
        **{page: top_page(name) for name, page in TOP_PAGES.items()},
        "reference/commands.md": commands_page(),
        "reference/configuration.md": configuration_page(),
        "reference/http.md": http_page(described),
        "reference/openapi.json": json.dumps(described, indent=1),
        "reference/python.md": python_page(),
    }


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Make anchors as GitHub does, so that the same links work in both."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is generated."""
    for path, content in generated().items():
        files.append(File.generated(config, path, content=content))
    return files


def titles(nav: Any) -> Iterator[tuple[str, str]]:
    """Page and title of every entry of the navigation."""
    for entry in nav:
        for title, below in entry.items():
            if isinstance(below, str):
                yield below, title
            else:
                yield from titles(below)


def on_page_markdown(markdown: str, config: MkDocsConfig, **_: Any) -> str:
    """Read lists and tables as GitHub does, find the pages of the top folder, and call pages by their titles."""
    known = dict(titles(config.nav))

    def moved(words: str, target: str) -> tuple[str, str]:
        name, hash_sign, anchor = target.removeprefix("../").partition("#")
        if target.startswith("../") and name in TOP_PAGES:
            target = TOP_PAGES[name] + hash_sign + anchor
        page = words.removeprefix("docs/")
        return known.get(TOP_PAGES.get(page, page), words), target

    return plain_pipes(indent_lists(change_links(markdown, moved)))

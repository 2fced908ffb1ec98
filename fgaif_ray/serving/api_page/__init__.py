"""The page that documents the service's interface and tries it: Swagger UI over `/openapi.json`.

A token is typed into it, so that it loads nothing from elsewhere: ``swagger/`` holds files of swagger-ui-dist 5.35.0
(Apache-2.0), unchanged.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

PAGE_PATH: Final = "/docs"
FILES: Final = {
    "start.js": "text/javascript",
    "swagger/swagger-ui-bundle.js": "text/javascript",
    "swagger/swagger-ui.css": "text/css",
}
"""Files of this package that the page loads, with their types."""
FILE_PATHS: Final = {f"{PAGE_PATH}/{name.rpartition('/')[2]}": name for name in FILES}
"""Path of each file -> its name here."""
PATHS: Final = frozenset({PAGE_PATH, *FILE_PATHS})

_POLICY: Final = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' data:",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
)
HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": "; ".join(_POLICY),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """What a path of the page answers."""

    content: bytes
    media_type: str


def read_page_files() -> dict[str, PageFile]:
    """Read the page and its files, by path."""
    folder = files(__name__)
    found = {PAGE_PATH: PageFile((folder / "page.html").read_bytes(), "text/html")}
    for path, name in FILE_PATHS.items():
        found[path] = PageFile((folder / name).read_bytes(), FILES[name])
    return found

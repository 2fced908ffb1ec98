"""The page on which a person labels an audit: one HTML file that needs nothing else, offline.

The AI's verdicts are not in the page, so that nobody is led by them. Untrusted text is embedded as JSON in a script
element and becomes text nodes; the page's policy allows no script but its own and forbids every request.
"""

import base64
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final

from markupsafe import Markup
from PIL import Image

from fgaif_ray import __version__
from fgaif_ray.audit.human import ANSWERS_FORMAT, ANSWERS_VERSION
from fgaif_ray.audit.items import Audit
from fgaif_ray.fact_types import FactType, colour_of, style_variables
from fgaif_ray.images import SMALLEST_PHOTO, picture_url, side_by_side
from fgaif_ray.pages import page_environment, page_source, page_style
from fgaif_ray.records import CLASS_NAMES

LARGEST_SIDE: Final = 900
"""Pixels; larger images are reduced."""


def load_pictures(audit: Audit, load: Callable[[str], Image.Image]) -> dict[str, tuple[str, bool]]:
    """Load the images of each response once, by their digest: a data URL of all of them side by side, and whether they
    are so small that they are shown enlarged.

    Args:
        audit: the sample.
        load: opens an image by its path.
    """
    pictures = {}
    for item in audit.items:
        if item.image_sha256 not in pictures:
            image = side_by_side([load(path) for path in item.images])
            side = LARGEST_SIDE * len(item.images)
            pictures[item.image_sha256] = picture_url(image, side), max(image.size) < SMALLEST_PHOTO
    return pictures


def build_page(audit: Audit, pictures: dict[str, tuple[str, bool]], title: str, fact_types: Sequence[FactType]) -> str:
    """Build the page of an audit as one HTML document.

    Args:
        audit: the sample.
        pictures: from ``load_pictures``.
        title: shown on top.
        fact_types: those of the audit.
    """
    environment = page_environment("fgaif_ray.audit")
    style, script = page_style(environment, "audit.css"), page_source(environment, "audit.js")
    html: str = environment.get_template("audit.html.j2").render(
        title=title,
        style=Markup(style_variables(fact_types) + style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=_data(audit, pictures, fact_types),
        count=len(audit.items),
        version=__version__,
    )
    return html


def _data(audit: Audit, pictures: dict[str, tuple[str, bool]], fact_types: Sequence[FactType]) -> dict[str, Any]:
    """Return the data that the script reads. Text is cut here, since JavaScript counts characters differently."""
    return {
        "format": ANSWERS_FORMAT,
        "version": ANSWERS_VERSION,
        "audit": audit.id,
        "types": [
            {"name": one.name, "title": one.title, "meaning": one.meaning, "colour": colour_of(one.name)}
            for one in fact_types
        ],
        "labels": list(CLASS_NAMES),
        "pictures": {key: {"url": url, "enlarged": enlarged} for key, (url, enlarged) in pictures.items()},
        "items": [
            {
                "sample_id": item.sample_id,
                "segment": item.segment,
                "picture": item.image_sha256,
                "prompt": item.prompt,
                "before": item.response[: item.start],
                "text": item.text,
                "after": item.response[item.end :],
                "facts": [fact.to_row() for fact in item.facts],
            }
            for item in audit.items
        ],
    }

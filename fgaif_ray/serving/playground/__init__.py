"""The page on which a person tries the reward models: images, a response, and the reward of each segment.

One HTML document without outside resources. It asks `POST /v1/rewards` of the service that serves it, with a token that
is typed in and kept in the page's memory only. Untrusted texts become text nodes, and the page's policy allows no
script but its own.
"""

import base64
import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup

from fgaif_ray import __version__
from fgaif_ray.fact_types import FactType, colour_of, style_variables
from fgaif_ray.images import SMALLEST_PHOTO, picture_url
from fgaif_ray.pages import page_environment, page_source, page_style
from fgaif_ray.records import CLASS_NAMES
from fgaif_ray.serving.wire import (
    MAX_IMAGE_BYTES,
    MAX_IMAGES,
    MAX_PROMPT_CHARACTERS,
    MAX_RESPONSE_CHARACTERS,
    TOKEN_VARIABLE,
)
from fgaif_ray.shapes.captions import CAPTION_PROMPTS, POLICY_ERRORS, write_caption
from fgaif_ray.shapes.render import render
from fgaif_ray.shapes.scenes import draw_scene

EXAMPLES: Final = 6
"""Scenes of the embedded world that the page offers."""


@dataclass(frozen=True, slots=True)
class Playground:
    """The page and the headers of the service's answer."""

    html: str
    headers: Mapping[str, str]


def build_playground(fact_types: Sequence[FactType], *, token_needed: bool) -> Playground:
    """Render the page of a service that scores these types, with or without a token."""
    environment = page_environment("fgaif_ray.serving.playground")
    style, script = page_style(environment, "playground.css"), page_source(environment, "playground.js")
    style = style_variables(fact_types) + _dots(fact_types) + style
    html: str = environment.get_template("playground.html.j2").render(
        style=Markup(style),
        script=Markup(script),
        data=_data(fact_types),
        token_needed=token_needed,
        token_variable=TOKEN_VARIABLE,
        fact_types=fact_types,
        colour_of=colour_of,
        largest_prompt=MAX_PROMPT_CHARACTERS,
        largest_response=MAX_RESPONSE_CHARACTERS,
        version=__version__,
    )
    return Playground(html, _headers(style, script))


def example_scenes() -> list[dict[str, Any]]:
    """Make held-out scenes, each with a description that has the errors of the embedded world's policy."""
    examples = []
    for index in range(EXAMPLES):
        scene = draw_scene("heldout", index)
        generator = random.Random(index)
        image = render(scene)
        examples.append(
            {
                "name": f"scene {index + 1}",
                "picture": picture_url(image, SMALLEST_PHOTO),
                "prompt": CAPTION_PROMPTS[index % len(CAPTION_PROMPTS)],
                "response": write_caption(scene, POLICY_ERRORS, generator),
            }
        )
    return examples


def _dots(fact_types: Sequence[FactType]) -> str:
    """A class for each colour: the page's policy allows no style but this sheet."""
    names = (colour_of(one.name) for one in fact_types)
    return " ".join(f".dot.{name} {{ background: var(--{name}); }}" for name in names) + "\n"


def _data(fact_types: Sequence[FactType]) -> dict[str, Any]:
    """The data that the script reads."""
    return {
        "types": [one.name for one in fact_types],
        "colours": {one.name: colour_of(one.name) for one in fact_types},
        "classes": list(CLASS_NAMES),
        "largest_image": MAX_IMAGE_BYTES,
        "most_images": MAX_IMAGES,
        "smallest_photo": SMALLEST_PHOTO,
        "examples": example_scenes(),
    }


def _headers(style: str, script: str) -> dict[str, str]:
    policy = (
        "default-src 'none'",
        f"script-src '{_digest(script)}'",
        f"style-src '{_digest(style)}'",
        "img-src data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
    return {
        "content-security-policy": "; ".join(policy),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cache-control": "no-cache",
    }


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

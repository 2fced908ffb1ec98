"""A fact extractor that asks a local endpoint."""

from typing import Any

from fgaif_ray.fact_types import DEFAULT
from fgaif_ray.feedback.extractor import FactExtractor
from fgaif_ray.feedback.prompts import load_prompt
from fgaif_ray.records import Fact
from support.fake_openai import FakeOpenAI

DOG_FACTS = [Fact("existence", "There is a dog.")]
RESPONSE = "A dog is here."


def make_extractor(endpoint: FakeOpenAI, **options: Any) -> FactExtractor:
    settings: dict[str, Any] = {
        "api_key": "key",
        "prompt": load_prompt("extract-short-v2", DEFAULT),
        "max_retries": 2,
        "timeout_s": 30,
    }
    return FactExtractor(endpoint.url, model="annotator", **(settings | options))

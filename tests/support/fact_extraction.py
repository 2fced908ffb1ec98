"""A fact extractor that asks a local endpoint."""

from typing import Any

from fgaif_ray.config import ExtractorConfig
from fgaif_ray.fact_types import DEFAULT
from fgaif_ray.feedback.extractor import FactExtractor
from fgaif_ray.feedback.prompts import load_prompt
from fgaif_ray.records import Fact
from support.fake_openai import FakeOpenAI

DOG_FACTS = [Fact("existence", "There is a dog.")]
RESPONSE = "A dog is here."


def make_extractor(endpoint: FakeOpenAI, **options: Any) -> FactExtractor:
    api_key, calls = options.pop("api_key", "key"), options.pop("calls", None)
    settings: dict[str, Any] = {"prompt": "extract-short-v2", "max_retries": 2, "timeout_s": 30} | options
    config = ExtractorConfig(base_url=endpoint.url, model="annotator", **settings)
    return FactExtractor(config, load_prompt(config.prompt, DEFAULT), endpoint.url, api_key, calls)

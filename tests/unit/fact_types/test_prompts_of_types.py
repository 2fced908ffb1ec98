"""Extraction prompts: the text for the default types is what it always was, so that paid answers stay known."""

import pytest
import yaml
from support.counting import COUNTING

from fgaif_ray.config import ExtractorConfig
from fgaif_ray.errors import UserError
from fgaif_ray.fact_types import BUILT_IN, DEFAULT, parse_fact_type
from fgaif_ray.feedback.extraction import build_messages, parse_extraction, response_format
from fgaif_ray.feedback.extractor import FactExtractor
from fgaif_ray.feedback.prompts import load_prompt
from fgaif_ray.records import Fact

FOUR = (*DEFAULT, parse_fact_type(yaml.safe_load(COUNTING)))
KEYS = {
    ("extract-v1", "segment"): [
        "bf85ef1f265b3225fc89faff4d24a6bfe8ba0fdcdfa4c1a8e1b79f1dbe62cadc",
        "f33b1b9d51ea9a1a61c1d4bf3395ae1fed2e5c45dfda89dcdc4dac60ec610226",
    ],
    ("extract-v1", "response"): [
        "28eb7befdab1537f16b4ba370f01e874b45adeac5556e7acb001f84e092db961",
    ],
    ("extract-short-v2", "segment"): [
        "aa7389c578aae6750eae2021fa710a3848f23c770c7b0e7bc5ff255ab6738f7c",
        "45c913c824de195d5d789d69e1d855a6f9b2d6b86d198c19c829bb9a545c892f",
    ],
}
"""Of calls of the release before types were data, about "A dog. It is brown."."""


@pytest.mark.parametrize(("prompt", "mode"), KEYS)
def test_the_keys_of_paid_answers_are_the_same(prompt: str, mode: str) -> None:
    config = ExtractorConfig.model_validate({"base_url": "http://x/v1", "model": "m", "prompt": prompt, "mode": mode})
    extractor = FactExtractor(config, load_prompt(prompt, DEFAULT), config.base_url, None)
    questions = extractor.questions("A dog. It is brown.", ["A dog. ", "It is brown."])
    assert [extractor.key(question) for question in questions] == KEYS[prompt, mode]


def test_another_type_is_explained_and_asked_for() -> None:
    prompt = load_prompt("extract-v1", FOUR)
    system, user = (message["content"] for message in build_messages(prompt, "A dog.", ["A dog."], 0))
    assert "in four kinds:" in system
    assert '- "counting": how many of one kind of thing there are.' in system
    assert '"relation": ["The dog is lying on the grass."], "counting": []}' in system
    assert '"counting": ["..."]}' in user


def test_examples_of_a_type_are_shown_with_the_facts_of_all_types() -> None:
    system = load_prompt("extract-v1", FOUR).system or ""
    assert (
        'Sub-sentence: "Two cats sleep on a bed."\n'
        '{"existence": ["There are cats.", "There is a bed."], "attribute": [], "relation": [], '
        '"counting": ["There are two cats."]}' in system
    )


def test_fewer_types_are_asked_for_alone() -> None:
    system = load_prompt("extract-v1", [BUILT_IN["existence"]]).system or ""
    assert "in one kind:" in system
    assert "relation" not in system.split("Rules:")[0]
    assert '{"existence": ["There is a dog.", "There is grass."]}' in system


def test_the_answer_has_the_types_of_the_prompt() -> None:
    names = load_prompt("extract-v1", FOUR).fact_types
    assert response_format("segment", names)["json_schema"]["schema"]["required"] == list(names)
    text = '{"existence": [], "attribute": [], "relation": [], "counting": ["There are two dogs."]}'
    assert parse_extraction(text, "stop", types=names) == [[Fact("counting", "There are two dogs.")]]


def test_a_prompt_that_cannot_explain_a_type_is_refused() -> None:
    with pytest.raises(UserError, match="extract-v1"):
        load_prompt("extract-short-v2", FOUR)

"""Prompts: their exact texts where a trained model depends on them, and rendering."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgaif_ray.errors import UserError
from fgaif_ray.fact_types import DEFAULT
from fgaif_ray.feedback.prompts import known_prompts, load_prompt


def test_the_short_extraction_prompt_is_the_text_the_small_annotator_is_trained_on() -> None:
    prompt = load_prompt("extract-short-v2", DEFAULT)
    assert prompt.system is None
    assert prompt.render(context="A. B.", segment="B.") == "Description: A. B.\nSub-sentence: B.\nFacts:"


def test_the_verification_prompt_asks_one_yes_no_question() -> None:
    prompt = load_prompt("verify-v1")
    assert prompt.system is None
    assert (
        prompt.render(statement="There is a dog.")
        == "Is this statement right according to the image? There is a dog. Answer yes or no."
    )


def test_the_verification_prompt_speaks_of_as_many_images_as_there_are() -> None:
    prompt = load_prompt("verify-v1")
    asked = [prompt.about(images).render(statement="There is a dog.") for images in (1, 2, 3)]
    assert asked[0] == prompt.render(statement="There is a dog.")
    assert set(asked[1:]) == {"Is this statement right according to the images? There is a dog. Answer yes or no."}


def test_a_prompt_without_a_text_for_several_images_stays_as_it_is() -> None:
    prompt = load_prompt("extract-short-v2", DEFAULT)
    assert prompt.about(2) is prompt


def test_the_rich_extraction_prompt_has_a_system_text_with_all_kinds() -> None:
    prompt = load_prompt("extract-v1", DEFAULT)
    assert prompt.system is not None
    assert all(f'- "{kind}":' in prompt.system for kind in ("existence", "attribute", "relation"))


@given(statement=st.text() | st.sampled_from(["{statement}", "{0} {segment} }{", "{}", "\\1 \\g<0>"]))
@settings(deadline=None)
def test_values_are_inserted_as_they_are(statement: str) -> None:
    rendered = load_prompt("verify-v1").render(statement=statement)
    assert rendered == f"Is this statement right according to the image? {statement} Answer yes or no."


def test_a_field_named_in_another_value_is_not_replaced() -> None:
    rendered = load_prompt("extract-short-v2", DEFAULT).render(context="{segment}", segment="{context}")
    assert rendered == "Description: {segment}\nSub-sentence: {context}\nFacts:"


def test_a_missing_value_is_named() -> None:
    with pytest.raises(ValueError, match="extract-short-v2 needs a value for segment"):
        load_prompt("extract-short-v2", DEFAULT).render(context="A.")


@pytest.mark.parametrize("name", ["extract-v9", "", "../errors", "__init__"])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(UserError, match="use one of extract-short-v2, extract-v1, verify-v1"):
        load_prompt(name)


def test_every_prompt_loads_with_the_fields_it_may_use() -> None:
    fields = {name: load_prompt(name, DEFAULT).fields for name in known_prompts()}
    assert fields == {
        "extract-short-v2": {"context", "segment"},
        "extract-v1": {"response_json", "segments_json", "answer_format"},
        "verify-v1": {"statement"},
    }

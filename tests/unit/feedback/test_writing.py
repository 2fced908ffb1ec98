"""Writing systems: an answer in another language is seen where its letters show it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgaif_ray.feedback.writing import is_foreign, writing_systems


@pytest.mark.parametrize(
    ("text", "source", "foreign"),
    [
        ("There is a dog.", "A brown dog.", False),
        ("图片里有一只狗。", "A brown dog.", True),
        ("На картинке собака.", "A brown dog.", True),
        ("There is a dog.", "一只棕色的狗。", True),
        ("有一只叫Rex的狗。", "一只棕色的狗。", False),
        ("犬がいます。", "茶色の犬", False),
        ("There is a café.", "A cafe.", False),
        ('The sign says "犬".', "A sign with a letter.", False),
        ("", "A brown dog.", False),
        ("There is a dog.", "12.", False),
        ("A 𝐝𝐨𝐠 ａｔ the door.", "A dog.", False),
    ],
)
def test_letters_that_the_source_does_not_use_make_most_of_a_foreign_text(
    text: str, source: str, foreign: bool
) -> None:
    assert is_foreign(text, source) is foreign


@given(st.text())
@settings(deadline=None)
def test_no_text_is_foreign_to_itself(text: str) -> None:
    assert not is_foreign(text, text)
    assert writing_systems(text).total() <= len(text)

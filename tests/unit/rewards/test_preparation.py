"""Items of requests before a model sees them: images, texts and ids, and the processes in which they are read."""

import asyncio
import base64
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.image_files import claimed_png, encoded
from support.reward_helpers import CHECKPOINT, PROMPT, RESPONSE, picture
from transformers import AutoTokenizer, ByT5Tokenizer

from actors.rewards.preparers import PreparedItem, Preparers, UnpreparedItem
from fgaif_ray.errors import ItemError
from fgaif_ray.pixel_budget import PixelBudget
from fgaif_ray.rewards.preparation import check_image, check_text, image_bytes, segment_response, token_ends
from fgaif_ray.serving.wire import MAX_DECODED_CHARACTERS, MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, MAX_PROMPT_CHARACTERS

TOKENIZER = AutoTokenizer.from_pretrained(CHECKPOINT)
WORDS = st.sampled_from(["red", "circle.", "A", "big", "square,", "left", "of", "the", "blue", "\n", "triangle!", "is"])
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
TEXTS = st.lists(WORDS, max_size=40).map(" ".join)


def code_of(error: pytest.ExceptionInfo[ItemError]) -> str:
    return error.value.code


# Images


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", "DATA:image/svg+xml;base64,"])
def test_images_come_as_base64_or_data_url(prefix: str) -> None:
    data = picture()
    assert image_bytes(prefix + base64.b64encode(data).decode()) == data


@pytest.mark.parametrize(
    "field", ["http://127.0.0.1/cat.png", "file:///etc/passwd", "/etc/passwd", "s3://bucket/x.png", "not base64!", "é"]
)
def test_urls_and_paths_are_refused(field: str) -> None:
    with pytest.raises(ItemError) as error:
        image_bytes(field)
    assert code_of(error) == "invalid_image"


def test_a_large_image_is_refused_undecoded() -> None:
    with pytest.raises(ItemError) as error:
        image_bytes("A" * (MAX_IMAGE_BYTES * 4 // 3 + 8))
    assert code_of(error) == "image_too_large"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "invalid_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "invalid_image"),
        (picture()[:-40], "invalid_image"),
        (picture(file_format="TIFF"), "invalid_image"),
        (picture(file_format="GIF", mode="P"), "invalid_image"),
        (claimed_png(30_000, 30_000), "image_too_large"),
        (claimed_png(4096, 4097), "image_too_large"),
    ],
    ids=["empty", "eps", "truncated", "tiff", "gif", "bomb", "more pixels than are decoded"],
)
def test_unusable_images_are_refused(data: bytes, code: str) -> None:
    with pytest.raises(ItemError) as error:
        check_image(data)
    assert code_of(error) == code


@pytest.mark.parametrize(("mode", "file_format"), [("L", "PNG"), ("P", "BMP"), ("CMYK", "JPEG"), ("RGBA", "WEBP")])
def test_images_of_other_colour_modes_are_taken(mode: str, file_format: str) -> None:
    assert check_image(picture(mode=mode, file_format=file_format)) == 60 * 60


def test_an_image_that_is_reduced_while_it_is_opened_counts_as_what_is_decoded() -> None:
    """A JPEG of 20 million pixels, of which models see a million; a PNG cannot be reduced."""
    large = Image.new("L", (5000, 4000))
    assert check_image(encoded(large, "JPEG"), PixelBudget(max=1_000_000)) == 2500 * 2000
    for file in (encoded(large, "JPEG"), encoded(large)):
        with pytest.raises(ItemError, match="scale it down") as error:
            check_image(file)
        assert code_of(error) == "image_too_large"


# Responses


@UNTIMED
@given(TEXTS)
def test_ids_and_text_of_a_response_give_the_same_segments(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    from_ids = segment_response(TOKENIZER, None, [*ids, TOKENIZER.eos_token_id])
    assert from_ids.spans == segment_response(TOKENIZER, from_ids.text, None).spans


@UNTIMED
@given(TEXTS.filter(str.strip))
def test_the_tokens_up_to_an_end_hold_the_segments_up_to_it(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    response = segment_response(TOKENIZER, None, ids)
    for span, end in zip(response.spans, token_ends(TOKENIZER, response) or [], strict=True):
        until = TOKENIZER.decode(ids[: end + 1], skip_special_tokens=True)
        before = TOKENIZER.decode(ids[:end], skip_special_tokens=True)
        assert len(before.rstrip()) < len(response.text[: span.end].rstrip()) <= len(until)


def test_ids_of_another_response_are_refused() -> None:
    with pytest.raises(ItemError) as error:
        segment_response(TOKENIZER, "A blue square.", TOKENIZER.encode("A red circle.", add_special_tokens=False))
    assert code_of(error) == "response_mismatch"


def test_the_text_may_lack_the_white_space_around_the_ids() -> None:
    ids = TOKENIZER.encode(f"  {RESPONSE} \n", add_special_tokens=False)
    assert segment_response(TOKENIZER, RESPONSE, ids).text == TOKENIZER.decode(ids)


def test_unknown_ids_are_refused() -> None:
    with pytest.raises(ItemError) as error:
        segment_response(TOKENIZER, None, [1, len(TOKENIZER)])
    assert code_of(error) == "invalid_token_ids"


@pytest.mark.parametrize("longest", [3, None])
def test_a_text_may_be_of_a_greatest_length(longest: int | None) -> None:
    check_text("prompt", "abc", longest)
    if longest is not None:
        with pytest.raises(ItemError, match="the prompt has 4 characters, more than 3") as error:
            check_text("prompt", "abcd", longest)
        assert code_of(error) == "too_long"


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_half_a_character_is_no_text(text: str) -> None:
    with pytest.raises(ItemError) as error:
        segment_response(TOKENIZER, text, None)
    assert code_of(error) == "invalid_text"


# Processes


ITEM = UnpreparedItem((picture(),), PROMPT, RESPONSE)
COSTLY = encoded(Image.effect_noise((3600, 3600), 50).convert("RGB"))
"""A photograph of 13 million pixels, which takes a fifth of a second or more to decode."""


def prepared(preparers: Preparers, items: Sequence[UnpreparedItem]) -> list[PreparedItem | ItemError]:
    """Prepare items at once, all images of them."""

    async def prepare() -> list[PreparedItem | ItemError]:
        found = await asyncio.gather(*(preparers.prepare(one, one.images) for one in items), return_exceptions=True)
        outcomes: list[PreparedItem | ItemError] = []
        for one in found:
            if isinstance(one, BaseException) and not isinstance(one, ItemError):
                raise one
            outcomes.append(one if isinstance(one, ItemError) else replace(one[0], pixels=sum(one[1])))
        return outcomes

    return asyncio.run(prepare())


@pytest.fixture(scope="module")
def preparers() -> Iterator[Preparers]:
    started = Preparers(CHECKPOINT, 2)
    yield started
    started.close()


def test_an_item_is_prepared_as_the_functions_say(preparers: Preparers) -> None:
    ids = TOKENIZER.encode(RESPONSE, add_special_tokens=False)
    with_ids = UnpreparedItem((picture(1), picture(2)), PROMPT, response_token_ids=ids)
    response = segment_response(TOKENIZER, None, ids)
    expected = PreparedItem(with_ids.images, PROMPT, response, token_ends(TOKENIZER, response), 2 * 60 * 60)
    assert prepared(preparers, [with_ids]) == [expected]


def test_a_query_holds_its_response(preparers: Preparers) -> None:
    query = replace(ITEM, response=None, query=(f"<s>USER: hi\n{RESPONSE}</s>", "USER: hi"))
    [found] = prepared(preparers, [query])
    assert isinstance(found, PreparedItem)
    assert (found.response.text, found.response.token_ids, found.token_ends) == (RESPONSE, None, None)


@pytest.mark.parametrize(
    ("item", "code"),
    [
        (replace(ITEM, images=(b"no image",)), "invalid_image"),
        (replace(ITEM, prompt="\ud800"), "invalid_text"),
        (replace(ITEM, prompt="a" * (MAX_PROMPT_CHARACTERS + 1)), "too_long"),
        (replace(ITEM, query=("a" * (MAX_DECODED_CHARACTERS + 2), "a")), "too_long"),
        (replace(ITEM, query=("b", "a")), "query_mismatch"),
        (replace(ITEM, response=None, response_token_ids=[len(TOKENIZER)]), "invalid_token_ids"),
    ],
)
def test_what_is_wrong_with_an_item_is_told(preparers: Preparers, item: UnpreparedItem, code: str) -> None:
    before = preparers.process_ids()
    [found] = prepared(preparers, [item])
    assert isinstance(found, ItemError) and found.code == code
    assert preparers.process_ids() == before


def test_texts_of_the_cluster_itself_are_as_long_as_they_are(preparers: Preparers) -> None:
    long = replace(ITEM, prompt="a" * (MAX_PROMPT_CHARACTERS + 1), limited=False)
    assert isinstance(prepared(preparers, [long])[0], PreparedItem)


def test_the_processes_know_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGAIF_REWARD_TOKEN", "a-secret-of-the-service")
    preparers = Preparers(CHECKPOINT, 1)
    environments = [Path(f"/proc/{process_id}/environ").read_bytes() for process_id in preparers.process_ids()]
    preparers.close()
    assert b"PYTHONPATH=" in environments[0] and b"a-secret" not in environments[0]


def test_an_item_that_takes_too_long_ends_its_process_and_no_other_item() -> None:
    preparers = Preparers(CHECKPOINT, 1, seconds=0.05)
    [before] = preparers.process_ids()
    found = prepared(preparers, [ITEM, replace(ITEM, images=(COSTLY,)), ITEM, ITEM])
    [after] = preparers.process_ids()
    preparers.close()
    assert [isinstance(one, PreparedItem) for one in found] == [True, False, True, True]
    assert isinstance(found[1], ItemError) and found[1].code == "too_costly" and "processor time" in str(found[1])
    assert before != after


def test_an_item_whose_process_is_killed_from_outside_is_prepared_again() -> None:
    """By the kernel that is out of memory, say; the process is stopped first, so that it dies with the item in hand."""
    preparers = Preparers(CHECKPOINT, 1)
    [before] = preparers.process_ids()
    os.kill(before, signal.SIGSTOP)
    kill = threading.Timer(0.5, os.kill, (before, signal.SIGKILL))
    kill.start()
    [found] = prepared(preparers, [ITEM])
    [after] = preparers.process_ids()
    preparers.close()
    assert isinstance(found, PreparedItem)
    assert before != after


def test_an_item_that_takes_too_much_memory_is_refused() -> None:
    preparers = Preparers(CHECKPOINT, 1, memory=32 << 20)
    found = prepared(preparers, [replace(ITEM, images=(COSTLY,)), ITEM])
    preparers.close()
    assert isinstance(found[0], ItemError) and found[0].code == "too_costly"
    assert isinstance(found[1], PreparedItem)


def test_images_are_looked_at_under_the_budget_of_the_models() -> None:
    preparers = Preparers(CHECKPOINT, 1, PixelBudget(max=1_000_000))
    [found] = prepared(preparers, [replace(ITEM, images=(encoded(Image.new("L", (5000, 4000)), "JPEG"),))])
    preparers.close()
    assert isinstance(found, PreparedItem) and found.pixels == 2500 * 2000 < MAX_IMAGE_PIXELS


def test_a_tokenizer_written_in_python_decodes_too(tmp_path: Path) -> None:
    tokenizer = ByT5Tokenizer()
    tokenizer.save_pretrained(tmp_path)
    ids = tokenizer.encode("A café. It is open now.", add_special_tokens=False)
    preparers = Preparers(str(tmp_path), 1)
    [found] = prepared(preparers, [replace(ITEM, images=(), response=None, response_token_ids=ids)])
    preparers.close()
    assert isinstance(found, PreparedItem) and found.response.text == "A café. It is open now."


def test_responses_are_cut_in_their_language() -> None:
    german = replace(ITEM, response="Auf dem Tisch liegt ein Tier bzw. Ein Hund liegt auf dem Boden.")
    found = {}
    for language in ("en", "de"):
        preparers = Preparers(CHECKPOINT, 1, language=language)
        found[language] = prepared(preparers, [german])[0]
        preparers.close()
    cuts = [len(one.response.spans) for one in found.values() if isinstance(one, PreparedItem)]
    assert cuts == [2, 1]


def test_the_processes_need_neither_torch_nor_transformers(repository: Path) -> None:
    import subprocess
    import sys

    module = "fgaif_ray.rewards.preparation_process"
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'transformers', 'ray'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=repository, check=False).returncode == 0

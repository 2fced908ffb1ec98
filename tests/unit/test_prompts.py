"""Prompts as one string: plain text and chat messages, places of images, and what is refused."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgaif_ray.prompts import canonical_prompt, messages_of, parse_chat, shown_prompt, split_response

IMAGE = {"type": "image"}


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def as_json(*messages: dict[str, Any]) -> str:
    return json.dumps(messages)


# Plain text


@pytest.mark.parametrize(
    ("prompt", "content"),
    [
        ("What is this?", [IMAGE, text("What is this?")]),
        ("  two\n\nlines \n", [IMAGE, text("  two\n\nlines \n")]),
        ("<image>\nWhat is this?", [IMAGE, text("What is this?")]),
        ("<image> \r\nWhat is this?", [IMAGE, text("What is this?")]),
        ("What is this?\n<image>", [text("What is this?"), IMAGE]),
        ("<image>\n\nWhat is this?", [IMAGE, text("\nWhat is this?")]),
        ("Is <image> a cat?", [text("Is "), IMAGE, text(" a cat?")]),
        ("<image>", [IMAGE]),
        ("", [IMAGE]),
        ('[{"role": "user"}]', [IMAGE, text('[{"role": "user"}]')]),
        ("[1, 2", [IMAGE, text("[1, 2")]),
    ],
)
def test_plain_text_is_one_message_of_the_user(prompt: str, content: list[Any]) -> None:
    assert messages_of(prompt) == [user(content)]


def test_several_images_come_first_or_where_they_are_placed() -> None:
    assert messages_of("Compare.", 2) == [user([IMAGE, IMAGE, text("Compare.")])]
    assert messages_of("<image>\n<image>\nCompare.", 2) == [user([IMAGE, IMAGE, text("Compare.")])]
    assert messages_of("Is <image> like <image>?", 2) == [user([text("Is "), IMAGE, text(" like "), IMAGE, text("?")])]


def test_a_prompt_may_be_asked_without_an_image() -> None:
    assert messages_of("Why?", 0) == [user([text("Why?")])]


@pytest.mark.parametrize(
    ("prompt", "images", "said"),
    [
        ("<image> or <image>?", 1, "has 2 places for an image (<image>) but is asked with 1 image"),
        ("<image>?", 2, "has 1 place for an image (<image>) but is asked with 2 images"),
        ("<image>?", 0, "has 1 place for an image (<image>) but is asked with 0 images"),
        (as_json(user([IMAGE, text("<image>?")])), 1, "has 2 places"),
    ],
)
def test_places_and_images_are_counted(prompt: str, images: int, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        messages_of(prompt, images)


# Chat messages


def test_images_without_a_place_come_first_in_the_first_message_of_the_user() -> None:
    prompt = as_json(system("Be brief."), user("What is this?"), assistant("A cat."), user("Sure?"))
    assert messages_of(prompt) == [
        system([text("Be brief.")]),
        user([IMAGE, text("What is this?")]),
        assistant([text("A cat.")]),
        user([text("Sure?")]),
    ]


def test_images_keep_their_places_in_a_conversation() -> None:
    prompt = as_json(user("Hello."), assistant("Hello!"), user("<image>\nWhat is this?"))
    assert messages_of(prompt)[-1] == user([IMAGE, text("What is this?")])
    assert messages_of(prompt)[0] == user([text("Hello.")])


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image"},
        {"type": "image", "image": "a.png"},
        {"type": "image", "text": None, "image": {"bytes": b"x", "path": None}},
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"image": "a.png"},
        {"image_url": "a.png", "text": None},
    ],
)
def test_an_image_part_is_a_place(part: dict[str, Any]) -> None:
    assert canonical_prompt([user([text("See "), part, text(".")])]) == json.dumps(
        [user([text("See "), IMAGE, text(".")])], separators=(",", ":")
    )


@pytest.mark.parametrize("part", [{"type": "text", "text": "Why?", "image": None}, {"text": "Why?"}, "Why?"])
def test_a_text_part_may_have_other_keys_or_none(part: Any) -> None:
    assert canonical_prompt([user([part])]) == "Why?"


# The canonical form


@pytest.mark.parametrize(
    "messages",
    [
        [user("Why?")],
        [user("<image>\nWhy?")],
        [user([IMAGE, text("Why?")])],
        [user([IMAGE, IMAGE, text("Why?")])],
        [[user("Why?")]],
        [user(["Why?"])],
    ],
)
def test_one_message_with_text_after_the_images_is_plain_text(messages: list[Any]) -> None:
    assert canonical_prompt(messages) == "Why?"


def test_other_conversations_are_compact_json() -> None:
    assert canonical_prompt([system("Kürze."), user("Why?")]) == (
        '[{"role":"system","content":[{"type":"text","text":"Kürze."}]},'
        '{"role":"user","content":[{"type":"text","text":"Why?"}]}]'
    )


def test_equal_conversations_are_equal_strings() -> None:
    by_marker = canonical_prompt([{"content": "Is <image> a cat?", "role": "user", "name": None}])
    by_parts = canonical_prompt([user([text("Is "), {"type": "image", "image": "a.png"}, text(" a cat?")])])
    assert by_marker == by_parts


def test_text_that_would_be_taken_for_messages_stays_in_json() -> None:
    quoted = as_json(user("Hello."))
    prompt = canonical_prompt([user([IMAGE, text(quoted)])])
    assert messages_of(prompt) == [user([IMAGE, text(quoted)])]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("Why?", "not a list of chat messages"),
        ([], "it has no message of the user"),
        ([{"from": "human", "value": "Why?"}], "not a list of chat messages"),
        ([user("a"), "b"], "not a list of chat messages"),
        ([user("a"), assistant("b")], "the last message is the assistant's"),
        ([system("a")], "the last message is the system's"),
        ([{"role": "tool", "content": "a"}, user("b")], "message 1 is of the role 'tool'"),
        ([assistant(None), user("b")], "content of message 1 is neither text nor a list"),
        ([user([{"type": "video", "video": "a.mp4"}])], "message 1 has a part of type 'video'"),
        ([user([{"type": "text"}])], "message 1 has a part that is neither text nor an image"),
        ([user([7])], "message 1 has a part that is neither text nor an image"),
        ([user(" ")], "the last message is empty"),
        ([user([])], "the last message is empty"),
    ],
)
def test_what_cannot_be_asked_is_said(messages: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        canonical_prompt(messages)


def test_a_prompt_in_json_is_checked_like_messages() -> None:
    with pytest.raises(ValueError, match="the last message is the assistant's"):
        messages_of(as_json(user("a"), assistant("b")))


CONTENT_PARTS = st.lists(st.just(IMAGE) | st.text().map(text) | st.text(), max_size=4)
TEXTS = st.text() | st.sampled_from(["<image>", "\n<image>\n", " <image> <image>\n", '[{"role":"user","content":"x"}]'])
MARKED = st.lists(TEXTS, max_size=4).map("".join)
MESSAGES = st.builds(
    lambda before, last: [*before, user([*last, text("?")])],
    st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["system", "user", "assistant"]), "content": MARKED | CONTENT_PARTS}
        ),
        max_size=3,
    ),
    CONTENT_PARTS,
)


def places_in(messages: list[dict[str, Any]]) -> int:
    return sum(part == IMAGE for message in messages for part in message["content"])


@given(prompt=MARKED | MESSAGES.map(canonical_prompt))
def test_a_canonical_prompt_is_the_prompt(prompt: str) -> None:
    """It has the same messages, and is its own canonical form."""
    images = max(1, prompt.count("<image>"), prompt.count('{"type":"image"}'))
    try:
        messages = messages_of(prompt, images)
    except ValueError:
        return
    canonical = canonical_prompt(messages)
    assert messages_of(canonical, images) == messages
    assert canonical_prompt(messages_of(canonical, images)) == canonical
    assert places_in(messages) == images


@given(messages=MESSAGES)
def test_messages_become_a_string_that_every_stage_reads_alike(messages: list[dict[str, Any]]) -> None:
    prompt = canonical_prompt(messages)
    chat = parse_chat(prompt)
    assert canonical_prompt(chat if chat is not None else [user(prompt)]) == prompt


# Shown to people


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        ("Why?", "Why?"),
        ("<image>\nWhy?", "<image>\nWhy?"),
        (as_json(user([text("Is "), IMAGE, text(" a cat?")])), "Is <image> a cat?"),
        (
            as_json(user([IMAGE, text("What is this?")]), assistant("A cat."), user("Sure?")),
            "user: <image> What is this?\nassistant: A cat.\nuser: Sure?",
        ),
        (as_json(user("Hello."), system("Be brief."), user("Why?")), "system: Be brief.\nuser: Hello.\nuser: Why?"),
        (as_json(assistant("never a prompt")), as_json(assistant("never a prompt"))),
    ],
)
def test_a_prompt_is_shown_as_people_read_it(prompt: str, shown: str) -> None:
    assert shown_prompt(prompt) == shown


# Answers at the end


@pytest.mark.parametrize("content", ["A <image> cat.", [text("A <image> "), text("cat.")], ["A <image> cat."]])
def test_the_answer_is_taken_off_word_for_word(content: Any) -> None:
    assert split_response([user("What?"), assistant(content)]) == ([user("What?")], "A <image> cat.")


def test_a_conversation_that_ends_with_the_user_has_no_answer() -> None:
    assert split_response([user("What?")]) == ([user("What?")], None)


@pytest.mark.parametrize("content", [None, [IMAGE]])
def test_an_answer_is_text(content: Any) -> None:
    with pytest.raises(ValueError, match="is not text"):
        split_response([user("What?"), assistant(content)])

"""Rows as data sets of TRL and verl have them: chat messages, lists of images, data URLs."""

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.source_data import IMAGE_STRUCT, configure, names, picture, write_lines, write_pictures

from fgaif_ray import storage
from fgaif_ray.config import ColumnNames
from fgaif_ray.errors import UserError
from fgaif_ray.prompts import canonical_prompt, messages_of
from fgaif_ray.sources import ImageSets, prepare_images, provided_responses
from fgaif_ray.sources.row import Row, parse_row

COUNT = 9


def read_row(columns: ColumnNames | None = None, **values: Any) -> Row:
    return parse_row({"image": "a.png"} | values, columns or ColumnNames(), "photos/{}".format, "row 1")


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def asked(sets: ImageSets) -> list[str]:
    return [
        prompt for part in (sets.sample, sets.align, sets.evaluate) for _, prompt in sets.questions(part, ["shared"])
    ]


# Prompts


@pytest.mark.parametrize(
    "prompt",
    [
        "What is this?",
        "<image>\nWhat is this?",
        ["What is this?"],
        [user("What is this?")],
        [user("<image>What is this?")],
        [[user("What is this?")]],
        [user([{"type": "image", "text": None}, {"type": "text", "text": "What is this?"}])],
        json.dumps([user("<image>\nWhat is this?")]),
    ],
)
def test_one_question_about_the_image_is_plain_text(prompt: Any) -> None:
    assert read_row(prompt=prompt) == Row(("photos/a.png",), "What is this?", None)


def test_a_conversation_is_one_string_with_the_place_of_the_image() -> None:
    conversation = [{"role": "system", "content": "Be brief."}, user("What?"), assistant("A cat."), user("Sure?")]
    row = read_row(prompt=conversation)
    assert row.prompt == canonical_prompt(messages_of(json.dumps(conversation)))
    assert read_row(prompt=row.prompt) == row


def test_the_answer_that_messages_end_with_is_a_provided_response() -> None:
    row = read_row(ColumnNames(prompt="messages"), messages=[user("What?"), assistant("A cat.")])
    assert (row.prompt, row.response) == ("What?", "A cat.")


def test_messages_without_an_answer_are_sampled() -> None:
    row = read_row(ColumnNames(prompt="messages"), messages=[user("What?"), assistant(" ")])
    assert (row.prompt, row.response) == ("What?", None)


def test_responses_at_the_end_of_messages_can_be_left_aside() -> None:
    row = read_row(ColumnNames(prompt="messages", response=None), messages=[user("What?"), assistant("A cat.")])
    assert (row.prompt, row.response) == ("What?", None)


@pytest.mark.parametrize(
    "response", ["A cat.", [assistant("A cat.")], [assistant([{"type": "text", "text": "A cat."}])]]
)
def test_a_response_is_text_or_one_message(response: Any) -> None:
    assert read_row(prompt="What?", response=response).response == "A cat."


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"prompt": [user("What?"), assistant("A cat.")], "response": "A dog."}, "one at the end of 'prompt'"),
        ({"prompt": [assistant("A cat.")]}, "'prompt' cannot be asked: it has no message of the user"),
        ({"prompt": [user("What?"), assistant(None)]}, "the last message, which is the assistant's, is not text"),
        ({"prompt": [user("\ud800")]}, "half a surrogate pair"),
        ({"prompt": "What?", "response": [assistant(None)]}, "'response' cannot be used: .* is not text"),
        ({"prompt": "What?", "response": [user("A cat.")]}, "'response' is not text but list"),
    ],
)
def test_messages_that_cannot_be_used_are_one_sentence(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"^row 1: .*{said}"):
        read_row(**values)


# Columns


def test_columns_of_trl_and_verl_are_read_without_naming_them(tmp_path: Path) -> None:
    rows = [
        {"images": [name], "messages": [user(f"<image>Prompt {index}?"), assistant(f"Answer {index}.")]}
        for index, name in enumerate(write_pictures(tmp_path, COUNT))
    ]
    config = configure(tmp_path / "run", path=str(write_lines(tmp_path / "rows.jsonl", rows)))
    sets = prepare_images(config)
    assert names(sets.sample) == ["00.png", "01.png", "02.png", "03.png"]
    assert [row.text for row in provided_responses(config, sets)] == [f"Answer {index}." for index in range(4)]
    assert asked(sets) == [f"Prompt {index}?" for index in (4, 5, 6, 8)]


def test_the_default_columns_come_first(tmp_path: Path) -> None:
    rows = [
        {"image": name, "images": ["other.png"], "prompt": "Mine?", "messages": [user("Other?")]}
        for name in write_pictures(tmp_path, COUNT)
    ]
    sets = prepare_images(configure(tmp_path / "run", path=str(write_lines(tmp_path / "rows.jsonl", rows))))
    assert names(sets.sample)[0] == "00.png" and set(asked(sets)) == {"Mine?"}


def test_a_column_that_is_named_is_the_one_that_is_read(tmp_path: Path) -> None:
    rows = [{"images": name, "prompt": "Why?"} for name in write_pictures(tmp_path, COUNT)]
    config = configure(
        tmp_path / "run", path=str(write_lines(tmp_path / "rows.jsonl", rows)), columns={"image": "file"}
    )
    with pytest.raises(UserError, match="has no column 'file'"):
        prepare_images(config)


@pytest.mark.parametrize("source", ["rows", "dataset"])
def test_parquet_and_datasets_with_lists_of_images_and_messages_are_read(tmp_path: Path, source: str) -> None:
    part = pa.struct([("type", pa.string()), ("text", pa.string())])
    message = pa.struct([("role", pa.string()), ("content", pa.list_(part))])
    messages = [
        [user([{"type": "image", "text": None}, {"type": "text", "text": f"Prompt {index}?"}])]
        for index in range(COUNT)
    ]
    images = [[{"bytes": picture(index), "path": None}] for index in range(COUNT)]
    table = pa.table(
        {"images": pa.array(images, pa.list_(IMAGE_STRUCT)), "prompt": pa.array(messages, pa.list_(message))}
    )
    if source == "rows":
        path = tmp_path / "rows.parquet"
        pq.write_table(table, path)
    else:
        path = tmp_path / "saved"
        path.mkdir()
        with pa.ipc.new_stream(path / "data.arrow", table.schema) as stream:
            stream.write_table(table)
        (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    config = configure(tmp_path / "run", source=source, path=str(path))
    sets = prepare_images(config)
    assert asked(sets) == [f"Prompt {index}?" for index in (0, 1, 2, 3, 4, 5, 6, 8)]
    assert storage.read_bytes(*sets.sample[1]) == picture(1)
    assert prepare_images(config) == sets


def test_lists_of_paths_are_not_stored(tmp_path: Path) -> None:
    images = [[name] for name in write_pictures(tmp_path, COUNT)]
    pq.write_table(pa.table({"images": images, "prompt": ["Why?"] * COUNT}), tmp_path / "rows.parquet")
    sets = prepare_images(configure(tmp_path / "run", path=str(tmp_path / "rows.parquet")))
    assert sets.sample[0] == (str(tmp_path / "00.png"),)
    assert not (tmp_path / "run").exists()


# Data URLs


def data_url(index: int) -> str:
    return "data:image/png;base64," + base64.b64encode(picture(index)).decode()


def test_images_in_data_urls_are_stored(tmp_path: Path) -> None:
    rows = [{"image": data_url(index), "prompt": f"{index}?", "response": "Yes."} for index in range(COUNT)]
    config = configure(tmp_path / "run", path=str(write_lines(tmp_path / "rows.jsonl", rows)))
    sets = prepare_images(config)
    assert [storage.read_bytes(image) for (image,) in sets.sample] == [picture(index) for index in range(4)]
    assert [row.images for row in provided_responses(config, sets)] == sets.sample
    assert prepare_images(config) == sets


def test_data_urls_below_paths_are_refused(tmp_path: Path) -> None:
    rows = [{"image": name, "prompt": "Why?"} for name in write_pictures(tmp_path, COUNT)]
    path = write_lines(tmp_path / "rows.jsonl", [*rows, {"image": data_url(1), "prompt": "Why?"}])
    with pytest.raises(UserError, match="give all as paths or all as data URLs"):
        prepare_images(configure(tmp_path / "run", path=str(path)))


def test_paths_below_data_urls_are_read(tmp_path: Path) -> None:
    rows = [{"image": name, "prompt": "Why?"} for name in write_pictures(tmp_path, COUNT)]
    path = write_lines(tmp_path / "rows.jsonl", [{"image": data_url(99), "prompt": "Why?"}, *rows])
    sets = prepare_images(configure(tmp_path / "run", path=str(path)))
    assert [storage.read_bytes(image) for (image,) in sets.sample] == [picture(index) for index in (99, 0, 1, 2)]


# Several images


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("Compare.", "Compare."),
        ("<image>\n<image>\nCompare.", "Compare."),
        ([user([{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Compare."}])], "Compare."),
        ("Is <image> like <image>?", canonical_prompt(messages_of("Is <image> like <image>?", 2))),
    ],
)
def test_the_prompt_says_where_several_images_stand(prompt: Any, asked: str) -> None:
    row = read_row(image=["a.png", "b.png"], prompt=prompt)
    assert row == Row(("photos/a.png", "photos/b.png"), asked, None)


@pytest.mark.parametrize("prompt", ["Is <image> like <image>?", [user("Is <image> like <image>?")]])
def test_a_prompt_with_other_places_than_images_is_kept_for_whoever_rejects_it(prompt: Any) -> None:
    row = read_row(prompt=prompt)
    assert row.prompt is not None
    with pytest.raises(ValueError, match="2 places for an image"):
        messages_of(row.prompt, len(row.images))


def test_rows_of_several_images_in_files_are_asked_with_all(tmp_path: Path) -> None:
    found = write_pictures(tmp_path, 2 * COUNT)
    pairs = list(zip(found[::2], found[1::2], strict=True))
    rows = [{"images": pair, "prompt": f"{index}?", "response": "Yes."} for index, pair in enumerate(pairs)]
    config = configure(tmp_path / "run", path=str(write_lines(tmp_path / "rows.jsonl", rows)))
    sets = prepare_images(config)
    assert sets.sample == [tuple(str(tmp_path / name) for name in pair) for pair in pairs[:4]]
    assert [row.images for row in provided_responses(config, sets)] == sets.sample


def test_several_images_inside_the_rows_are_stored(tmp_path: Path) -> None:
    images = [[{"bytes": picture(index + place), "path": None} for place in (0, 50)] for index in range(COUNT)]
    table = pa.table({"images": pa.array(images, pa.list_(IMAGE_STRUCT)), "prompt": ["Compare."] * COUNT})
    pq.write_table(table, tmp_path / "rows.parquet")
    config = configure(tmp_path / "run", path=str(tmp_path / "rows.parquet"))
    sets = prepare_images(config)
    assert [[storage.read_bytes(one) for one in some] for some in sets.sample[:2]] == [
        [picture(index), picture(index + 50)] for index in range(2)
    ]
    assert prepare_images(config) == sets


def test_rows_that_share_an_image_are_one_group(tmp_path: Path) -> None:
    rows = [{"images": [name, "00.png"], "prompt": "Compare."} for name in write_pictures(tmp_path, COUNT)]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match="holds 1 groups of images that have none in common; give at least 5"):
        prepare_images(configure(tmp_path / "run", path=str(path)))

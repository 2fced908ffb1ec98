"""Kept answers: found again by content, after any interruption, on any file system."""

import uuid
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fgaif_ray.calls.answers import AnswerIndex, AnswerWriter, CallAnswer, CallKeys, call_key, model_identity
from fgaif_ray.records import Fact

DOG = CallAnswer([[Fact("existence", "There is a dog.")]], None, None, "", 10, 4)
BAD = CallAnswer(None, "malformed", "the answer is not JSON", "Facts: a dog", 10, 4)

MESSAGES = st.builds(
    lambda role, content: {"role": role, "content": content},
    st.sampled_from(["system", "user", "assistant"]),
    st.text(st.characters(), max_size=20),  # halves of surrogate pairs among them, as JSON may spell them
)


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=20)), st.text(max_size=20))
def test_equal_contents_and_no_others_have_equal_keys(content: dict[str, str], change: str) -> None:
    assert call_key(content=content) == call_key(content=dict(reversed(list(content.items()))))
    assert call_key(content=content) != call_key(content=content | {"changed": change + "."}) or content.get(
        "changed"
    ) == (change + ".")


@given(st.lists(MESSAGES, max_size=4), st.text(max_size=20))
def test_keys_with_a_shared_part_are_those_of_the_whole(messages: list[dict[str, str]], model: str) -> None:
    options = {"n": 1}
    keys = CallKeys(options=options, model=model)
    assert keys(messages) == call_key(messages=messages, model=model, options=options)


def test_usable_and_unusable_answers_are_found_again(tmp_path: Path) -> None:
    writer = AnswerWriter(str(tmp_path))
    index = AnswerIndex(str(tmp_path))
    for number, answer in enumerate((DOG, BAD)):
        writer.keep(call_key(n=number), answer)
        index.close()
        index = AnswerIndex(str(tmp_path))
        assert CallAnswer.from_json(answer.to_json()) == answer
        assert index.find(call_key(n=number)) is not None
    assert len(index) == 2
    index.close()


def test_lines_that_were_cut_short_are_left_out(tmp_path: Path) -> None:
    AnswerWriter(str(tmp_path)).keep(call_key(n=1), DOG)
    (path,) = tmp_path.iterdir()
    with path.open("ab") as file:
        file.write(b'{"key": "00", "ans')
    index = AnswerIndex(str(tmp_path))
    assert len(index) == 1
    index.close()


def test_an_object_store_gets_a_file_per_flush() -> None:
    folder = f"memory://{uuid.uuid4().hex}"
    writer = AnswerWriter(folder)
    assert writer.is_buffered
    for number in range(4):
        writer.keep(call_key(n=number), DOG)
        if number % 2:
            writer.flush()
    index = AnswerIndex(folder)
    assert len(index) == 4
    index.close()


def test_a_checkpoint_with_new_weights_is_another_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"old")
    before = model_identity("annotator", str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"newer")
    assert model_identity("annotator", str(tmp_path)) != before
    assert model_identity("gpt", None) == "gpt"

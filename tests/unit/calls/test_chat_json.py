"""Messages are encoded as the standard encoder does it, whatever is remembered of earlier ones."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgaif_ray.calls.chat_json import MessagesEncoder

ENCODERS = [json.JSONEncoder(), json.JSONEncoder(sort_keys=True, ensure_ascii=False)]
TEXT = st.text(st.characters(), max_size=20)
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["system", "user"]), "content": TEXT}, optional={"name": TEXT})


@pytest.mark.parametrize("encoder", ENCODERS)
@given(messages=st.lists(MESSAGE | MESSAGE.map(lambda message: dict(reversed(message.items()))), max_size=4))
def test_messages_are_encoded_as_one_list(encoder: json.JSONEncoder, messages: list[dict[str, str]]) -> None:
    encode = MessagesEncoder(encoder)
    for _ in range(2):
        assert encode(messages) == encoder.encode(messages)

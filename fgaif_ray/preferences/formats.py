"""Preference pairs in the forms that trainers read.

* ``trl``: TRL's conversational vision preference. ``prompt`` are messages with their contents in parts; ``chosen`` and
  ``rejected`` a message each.
* ``llama-factory``: its sharegpt format with the tags of OpenAI's, ``ranking``. ``messages`` are texts with
  ``<image>`` at the places of images; ``chosen`` and ``rejected`` one message.
* ``ms-swift``: its standard format. The last of ``messages``, texts with ``<image>``, is the better response;
  ``rejected_response`` is the worse one's text.

None of them has a place for a context that is the assistant's: a segment is written with its context before it, in both
of a pair. In the difference of two log-probability ratios what both begin with cancels out, so the loss of DPO is that
of the segments alone, but for the token that ends the turn, which templates add to both. ``context`` holds how much it
is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from fgaif_ray.preferences.pair import Continuation, PreferencePair
from fgaif_ray.prompts import IMAGE_MARKER, messages_of

_STRING: Final = pa.string()
_PART: Final = pa.struct([pa.field("type", _STRING), pa.field("text", _STRING)])
_IN_PARTS: Final = pa.list_(pa.struct([pa.field("role", _STRING), pa.field("content", pa.list_(_PART))]))
_MESSAGE: Final = pa.struct([pa.field("role", _STRING), pa.field("content", _STRING)])
_ABOUT: Final = (
    pa.field("context", _STRING),
    pa.field("chosen_worth", pa.float64()),
    pa.field("rejected_worth", pa.float64()),
    pa.field("pair_id", _STRING),
)
"""Columns about a pair, which trainers leave alone."""


@dataclass(frozen=True, slots=True)
class PreferenceFormat:
    """A form of rows, without their images."""

    name: str
    row: Callable[[PreferencePair], dict[str, Any]]
    fields: tuple[pa.Field, ...]
    """Of the columns that ``row`` makes, in order."""

    def to_row(self, pair: PreferencePair) -> dict[str, Any]:
        """Return the plain values of a pair, without ``images``."""
        return self.row(pair) | {
            "context": pair.context,
            "chosen_worth": pair.chosen.worth,
            "rejected_worth": pair.rejected.worth,
            "pair_id": pair.pair_id,
        }

    def schema(self, images: pa.DataType) -> pa.Schema:
        """The schema of the rows, with a column ``images`` of this type first."""
        return pa.schema([pa.field("images", images), *self.fields, *_ABOUT])


def _trl(pair: PreferencePair) -> dict[str, Any]:
    def answer(one: Continuation) -> list[dict[str, Any]]:
        return [{"role": "assistant", "content": [{"type": "text", "text": one.context + one.text}]}]

    return {
        "prompt": messages_of(pair.prompt, len(pair.images)),
        "chosen": answer(pair.chosen),
        "rejected": answer(pair.rejected),
    }


def _llama_factory(pair: PreferencePair) -> dict[str, Any]:
    return {
        "messages": _marked(pair),
        "chosen": _answer(pair.chosen),
        "rejected": _answer(pair.rejected),
    }


def _ms_swift(pair: PreferencePair) -> dict[str, Any]:
    return {
        "messages": [*_marked(pair), _answer(pair.chosen)],
        "rejected_response": _answer(pair.rejected)["content"],
    }


def _marked(pair: PreferencePair) -> list[dict[str, str]]:
    """The messages of the prompt as texts, a marker at the place of each image."""
    return [
        {
            "role": message["role"],
            "content": "".join(
                IMAGE_MARKER if part["type"] == "image" else part["text"] for part in message["content"]
            ),
        }
        for message in messages_of(pair.prompt, len(pair.images))
    ]


def _answer(one: Continuation) -> dict[str, str]:
    return {"role": "assistant", "content": one.context + one.text}


FORMATS: Final[Mapping[str, PreferenceFormat]] = {
    one.name: one
    for one in (
        PreferenceFormat("trl", _trl, tuple(pa.field(name, _IN_PARTS) for name in ("prompt", "chosen", "rejected"))),
        PreferenceFormat(
            "llama-factory",
            _llama_factory,
            (pa.field("messages", pa.list_(_MESSAGE)), pa.field("chosen", _MESSAGE), pa.field("rejected", _MESSAGE)),
        ),
        PreferenceFormat(
            "ms-swift", _ms_swift, (pa.field("messages", pa.list_(_MESSAGE)), pa.field("rejected_response", _STRING))
        ),
    )
}

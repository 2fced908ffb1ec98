"""What a request says, checked and cut into segments before a model sees it: images, prompts, responses.

These are plain functions without torch and transformers, since they run in processes of their own
(``fgaif_ray.rewards.preparation_process``) that have to start quickly.
"""

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from fgaif_ray.errors import ItemError
from fgaif_ray.images import TooManyPixelsError, decode_image, pixels_to_decode
from fgaif_ray.pixel_budget import UNLIMITED, PixelBudget
from fgaif_ray.segments import ENGLISH, Span, segment_token_ends, split_segments
from fgaif_ray.serving.wire import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS
from fgaif_ray.token_offsets import Decoder, token_offsets

REQUEST_FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP")
"""Image formats of requests: a few well-maintained decoders, none of which starts another program. GIF is not one: the
time that a comment in a small file takes grows as the square of its length."""

ImageSource = bytes | str
"""An encoded image file, or the path or URI of one. Paths are never taken from an HTTP request: they are those of the
run's own images, and travel instead of what they name."""

_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class Tokenizer(Decoder, Protocol):
    """A `transformers` tokenizer, as far as it is needed here."""

    def __len__(self) -> int: ...


def image_bytes(field: str) -> bytes:
    """Return the encoded image file in a request's base64 or data URL field.

    Raises:
        ItemError: `image_too_large`, or `invalid_image` for anything but base64, such as URLs and paths.
    """
    match = _DATA_URL.match(field)
    encoded = field[match.end() :] if match else field
    if len(encoded) > MAX_IMAGE_BYTES * 4 // 3 + 4:
        raise ItemError("image_too_large", f"the image is larger than {MAX_IMAGE_BYTES} bytes")
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        message = "image must be base64 or a data URL (data:image/png;base64,...); URLs and paths are not opened"
        raise ItemError("invalid_image", message) from error


def check_image(data: bytes, budget: PixelBudget = UNLIMITED) -> int:
    """Decode the image of a request as the models will; returns how many pixels were decoded.

    Raises:
        ItemError: `image_too_large`: of more than MAX_IMAGE_PIXELS, after what can be left out of a JPEG;
            `invalid_image`: of another format than REQUEST_FORMATS, or damaged.
    """
    try:
        pixels = pixels_to_decode(data, budget, REQUEST_FORMATS)
        if pixels > MAX_IMAGE_PIXELS:
            raise TooManyPixelsError(f"the image has {pixels} pixels, more than {MAX_IMAGE_PIXELS}: scale it down")
        decode_image(data, budget)
    except TooManyPixelsError as error:
        raise ItemError("image_too_large", str(error)) from error
    except MemoryError:
        raise
    except ValueError as error:
        raise ItemError("invalid_image", str(error)) from error
    except Exception as error:  # whatever a decoder stumbles over in a damaged file
        raise ItemError("invalid_image", "the data are no readable image") from error
    return pixels


@dataclass(frozen=True, slots=True)
class SegmentedResponse:
    """A response and its segments."""

    text: str
    spans: list[Span]
    token_ids: list[int] | None
    """`[response_tokens]`, as sampled."""

    @property
    def segments(self) -> list[str]:
        """Text of each segment."""
        return [self.text[span.start : span.end] for span in self.spans]


def segment_response(
    tokenizer: Tokenizer,
    response: str | None,
    token_ids: Sequence[int] | None,
    longest: int | None = None,
    language: str = ENGLISH,
) -> SegmentedResponse:
    """Split a response given as text, as sampled ids, or as both.

    Provided ids take precedence: their decoding is the text, so that segments end on sampled tokens.

    Args:
        tokenizer: of the policy.
        response: its text.
        token_ids: sampled ids, `[response_tokens]`.
        longest: characters that the text may have; None is no limit.
        language: of the text, see `split_segments`.

    Raises:
        ItemError: `too_long`; `invalid_text`; `invalid_token_ids` if an id is outside the tokenizer;
            `response_mismatch` where text and ids are of different responses (white space and unfinished characters
            at the ends aside).
    """
    if response is not None:
        check_text("response", response, longest)
    if token_ids is None:
        text = response or ""
        return SegmentedResponse(text, split_segments(text, language), None)
    ids = list(token_ids)
    if ids and not 0 <= min(ids) <= max(ids) < len(tokenizer):
        raise ItemError("invalid_token_ids", f"a token id is outside the tokenizer's 0..{len(tokenizer) - 1}")
    decoded = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    text = decoded if isinstance(decoded, str) else "".join(decoded)
    check_text("response", text, longest)
    if response is not None and _core(response) != _core(text):
        message = "response is not what response_token_ids decode to with the policy's tokenizer: leave response out"
        raise ItemError("response_mismatch", message)
    return SegmentedResponse(text, split_segments(text, language), ids)


def check_text(name: str, text: str, longest: int | None = None) -> None:
    """Look whether a tokenizer can read a text.

    Raises:
        ItemError: `too_long`; `invalid_text`: it holds half of a character (a lone surrogate), which is not Unicode.
    """
    if longest is not None and len(text) > longest:
        raise ItemError("too_long", f"the {name} has {len(text)} characters, more than {longest}")
    if _SURROGATE.search(text):
        raise ItemError("invalid_text", f"the {name} holds a lone surrogate, which is half of a character")


def _core(text: str) -> str:
    return text.strip().rstrip("\ufffd").rstrip()


def token_ends(tokenizer: Tokenizer, response: SegmentedResponse) -> list[int] | None:
    """Return the index of the sampled token that ends each segment, `[segments]`; None without ids."""
    if response.token_ids is None:
        return None
    return segment_token_ends(response.spans, token_offsets(tokenizer, response.token_ids), response.text)

"""The wire format of the reward service: requests and answers of its routes.

Light on purpose: a client needs only pydantic and this file.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue

TOKEN_VARIABLE: Final = "FGAIF_REWARD_TOKEN"
"""Environment variable that holds the bearer token, for the service and for its clients."""

MAX_ITEMS: Final = 256
MAX_IMAGES: Final = 32
"""Images of an item."""
MAX_PROMPT_CHARACTERS: Final = 16_384
MAX_RESPONSE_CHARACTERS: Final = 32_768
MAX_RESPONSE_TOKENS: Final = 8_192
MAX_DECODED_CHARACTERS: Final = 131_072
"""Of a response that comes as ids, or within a query of OpenRLHF."""
MAX_IMAGE_BYTES: Final = 10 << 20
MAX_IMAGE_PIXELS: Final = 16 << 20
"""Pixels that are decoded of an image: what is left of a JPEG that is reduced while it is opened."""
MAX_REQUEST_PIXELS: Final = 256 << 20
"""Pixels that are decoded of all images of a request, equal ones counted once."""
MAX_QUERY_CHARACTERS: Final = 1 << 20
"""Of a query or prompt of OpenRLHF, in which an image may be thousands of special tokens."""
MAX_BODY_BYTES: Final = 64 << 20
MAX_BODY_VALUES: Final = 1 << 20
"""Values in a body: a few bytes of JSON become some hundred bytes of objects."""
MAX_BODY_KEYS: Final = 1 << 16
"""Keys in a body, which are kept as strings of their own until it is checked."""
MAX_FIELDS: Final = 32
"""Fields of an object in a request."""

EXAMPLE_IMAGE: Final = (
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQAQMAAAAlPW0iAAAABlBMVEX////cHh7/Hx2WAAAAFElEQVR42mNgQAL8H5gYGDARMgAAI20BDofI/jkA"
    "AAAASUVORK5CYII="
)
"""A red square on white, 16 x 16 pixels: the examples of the interface can be sent as they are."""
DEFAULT_PROMPT: Final = "Describe this image in detail."
"""What a text that is checked answers, unless its prompt is given."""
EXAMPLE_PROMPT: Final = "Describe this image."
EXAMPLE_RESPONSE: Final = "There is a red square. It is above a green circle."

_KEY_ENDS: Final = re.compile(rb'"\s*:')

Probabilities = tuple[FiniteFloat, FiniteFloat, FiniteFloat]
"""P(absent), P(consistent), P(hallucinated)."""


def count_values(body: bytes) -> int:
    """Return at least the number of values in a JSON text, from its commas and brackets alone."""
    return 1 + sum(map(body.count, (b",", b"[", b"{")))


def count_keys(body: bytes) -> int:
    """Return at least the number of keys in a JSON text: of quotes before a colon, those within strings too."""
    return sum(1 for _ in _KEY_ENDS.finditer(body))


class RequestModel(BaseModel):
    """Base of requests: unknown fields and loosely typed values are errors.

    Lists in requests have a greatest length and end at their first wrong element, so that an answer has few errors,
    whatever was sent.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MAX_FIELDS:
            raise ValueError(f"an object has {len(value)} fields")
        return value


class ResponseModel(BaseModel):
    """Base of answers: clients ignore fields that they do not know yet."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)


class ImagesItem(RequestModel):
    """Base of items: the image, or several images, that a response is about."""

    image: str | None = None
    """The image file as base64 or as a data URL. Other URLs and paths are never opened."""
    images: Annotated[list[str], Field(min_length=1, max_length=MAX_IMAGES, fail_fast=True)] | None = None
    """Several image files, in place of `image`."""

    @property
    def image_fields(self) -> tuple[str, ...]:
        """The image files, as they came."""
        return tuple(self.images or ()) if self.image is None else (self.image,)

    @model_validator(mode="after")
    def _has_images(self) -> Self:
        if (self.image is None) == (self.images is None):
            raise ValueError("give either image or images")
        return self


class RewardItem(ImagesItem):
    """One response to a prompt about one image, or several.

    Example: `RewardItem(image="data:image/png;base64,...", prompt="Describe it.", response="A red circle.")`
    """

    prompt: Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS)]
    """The question to the model, without chat template and image tokens; `<image>` is the place of an image. Without
    places, all images come first."""
    response: Annotated[str, Field(max_length=MAX_RESPONSE_CHARACTERS)] | None = None
    """The model's answer; may be left out where the ids are given."""
    response_token_ids: (
        Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MAX_RESPONSE_TOKENS, fail_fast=True)] | None
    ) = None
    """The sampled ids, `[response_tokens]`, of the policy's tokenizer; with them `token_rewards` come back."""

    @model_validator(mode="after")
    def _has_response(self) -> Self:
        if self.response is None and self.response_token_ids is None:
            raise ValueError("give response, response_token_ids or both")
        return self


class RewardRequest(RequestModel):
    """Body of `POST /v1/rewards`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"items": [{"image": EXAMPLE_IMAGE, "prompt": EXAMPLE_PROMPT, "response": EXAMPLE_RESPONSE}]},
            ]
        }
    )

    items: Annotated[list[RewardItem], Field(max_length=MAX_ITEMS, fail_fast=True)]


class SegmentReward(ResponseModel):
    """Verdicts and reward of one segment, the characters `[start, end)` of the response."""

    # In JSON the probabilities of each fact type are a field of the segment, named like the type. Which types there are
    # is for the service to say: `rewards` names them. `segment.existence` reads the probabilities of one.

    start: int
    end: int
    token_end: int | None
    """Index of the sampled token that ends it; None where no ids were given."""
    probabilities: dict[str, Probabilities]
    """P(absent), P(consistent), P(hallucinated) of a fact type."""
    rewards: dict[str, FiniteFloat]
    """Weighted reward by fact type."""
    reward: FiniteFloat
    """Their sum."""
    facts: dict[str, tuple[FiniteFloat, FiniteFloat]] | None = None
    """Expected facts, and false ones where one is, by fact type; left out where they are not counted."""

    def __getattr__(self, name: str) -> Any:
        probabilities = self.__dict__.get("probabilities", {})
        if name in probabilities:
            return probabilities[name]
        raise AttributeError(f"{type(self).__name__} has no field or fact type {name!r}")

    @model_validator(mode="before")
    @classmethod
    def _collect_types(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "probabilities" in value or not isinstance(value.get("rewards"), dict):
            return value
        if missing := [name for name in value["rewards"] if name not in value]:
            raise ValueError(f"the segment has a reward for {missing[0]} and no probabilities")
        return value | {"probabilities": {name: value[name] for name in value["rewards"]}}

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        # The serializer makes the same fields, but its result could be anything for all that pydantic knows.
        return handler({key: value for key, value in schema.items() if key != "serialization"})

    @model_serializer(mode="wrap")
    def _spread_types(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        spread: dict[str, Any] = {}
        for name, value in serialise(self).items():
            spread |= value if name == "probabilities" else {name: value}
        return spread if self.facts is not None else {name: spread[name] for name in spread if name != "facts"}


def spread_types(schema: dict[str, Any], types: Sequence[str]) -> None:
    """Put a field for each fact type in the place of `probabilities` in the JSON schema of `SegmentReward`."""
    fields = schema["properties"]
    verdict = fields["probabilities"]["additionalProperties"]
    schema["properties"] = {}
    for name, field in fields.items():
        about = {key: value for key, value in field.items() if key == "description"}
        of_type = {one: verdict | {"title": one.capitalize()} | about for one in types}
        schema["properties"] |= of_type if name == "probabilities" else {name: field}
    schema["required"] = [name for name in schema["properties"] if name in (*types, *schema["required"])]


def _is_unknown(value: object) -> bool:
    return value is None


class ScoredResponse(ResponseModel):
    """The dense reward of one response."""

    response: str
    """The text that the segments' offsets refer to."""
    segments: list[SegmentReward]
    reward: FiniteFloat
    """Sum of the segments' rewards."""
    token_rewards: list[FiniteFloat] | None
    """`[response_tokens]`, as the service's reward settings compose them; None where no ids were given."""
    model_version: str
    out_of_domain: bool | None = Field(default=None, exclude_if=_is_unknown)
    """Whether the images are unlike those that the reward models were trained on, so that the verdicts mean little;
    left out by services that do not know."""
    domain_distance: FiniteFloat | None = Field(default=None, exclude_if=_is_unknown)
    """How far they are from those, in units of the distance at which they are out of domain."""


class RewardResponse(ResponseModel):
    """Answer of `POST /v1/rewards`: one result per item, in order."""

    results: list[ScoredResponse]
    model_version: str
    request_id: str


class TrainedOn(ResponseModel):
    """What a reward model was trained on."""

    source: str | None
    """Kind and name of the images, e.g. `coco train2014`; None where its metrics do not say it."""
    images: int
    responses: int
    segments: int

    def __str__(self) -> str:
        return f"{self.images} images ({self.source or 'of a source that is not known'})"


class DomainCard(ResponseModel):
    """How a reward model tells images that are unlike those of its training."""

    threshold: FiniteFloat
    """Distance at which an image is out of domain."""
    images: int
    """Training images."""
    held_out: int
    """Images like those of training, on which false alarms were counted."""
    false_alarms: int
    false_alarm_rate: FiniteFloat | None


class CheckItem(ImagesItem):
    """One text about one image, or several, to be checked.

    Example: `CheckItem(image="data:image/png;base64,...", response="A red circle.")`
    """

    prompt: Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS)] = DEFAULT_PROMPT
    """What the text answers; `<image>` is the place of an image."""
    response: Annotated[str, Field(max_length=MAX_RESPONSE_CHARACTERS)]
    """The text."""


class CheckRequest(RequestModel):
    """Body of `POST /v1/check`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"items": [{"image": EXAMPLE_IMAGE, "response": EXAMPLE_RESPONSE}]}]}
    )

    items: Annotated[list[CheckItem], Field(max_length=MAX_ITEMS, fail_fast=True)]


class TypeVerdict(ResponseModel):
    """What one reward model says about a segment."""

    verdict: str
    """The likeliest class: `absent`, `consistent` or `hallucinated`; of novelty `absent`, `new` or `repeats`."""
    probability: FiniteFloat
    """Of that class."""
    probabilities: Probabilities


class CheckedSegment(ResponseModel):
    """The verdicts on one segment, the characters `[start, end)` of the text."""

    start: int
    end: int
    text: str
    hallucination: FiniteFloat | None
    """Highest P(hallucinated) of the fact types that are about truth; None where the service has none."""
    types: dict[str, TypeVerdict]
    """By fact type."""


class CheckedResponse(ResponseModel):
    """A checked text."""

    response: str
    score: FiniteFloat | None
    """The hallucination score, 0 to 1: the highest `hallucination` of a segment, 0 of a text without segments."""
    expected_share: FiniteFloat | None
    """Mean `hallucination` of the segments; None where the reward models judge whole responses."""
    segments: list[CheckedSegment]
    model_version: str
    out_of_domain: bool | None = None
    """Whether the images are unlike those that the reward models were trained on; then the verdicts mean little. None
    where the models do not know."""
    domain_distance: FiniteFloat | None = None
    """How far they are from those, in units of the distance at which they are out of domain."""
    trained_on: tuple[TrainedOn, ...] = ()
    """What the reward models were trained on; several where they were not trained on the same."""


class CheckResponse(ResponseModel):
    """Answer of `POST /v1/check`: one result per item, in order."""

    results: list[CheckedResponse]
    model_version: str
    request_id: str


class RewardModelCard(ResponseModel):
    """One reward model behind the service."""

    id: str
    """Its fact type."""
    version: str
    trained_on: TrainedOn | None = None
    domain: DomainCard | None = None
    """None where it does not know which images are unlike those of its training."""


class ModelList(ResponseModel):
    """Answer of `GET /v1/models`."""

    models: list[RewardModelCard]
    model_version: str
    """Changes when any of the models does."""
    backbone: str
    tokenizer: str
    """Whose token ids `response_token_ids` are."""
    placement: str
    kind: str = "separate"
    """``separate`` reward models, one ``multitask`` model, or ``coarse``: one verdict per response, the same for each
    type, at its last segment, with the segments before it absent."""
    temperature_scaling: bool = False
    weights: dict[str, float]
    value: str
    unit: str = "segment"
    false_cost: float = 1.0
    granularity: str = "segment"
    normalise_by_segments: bool = False

    @property
    def fact_types(self) -> tuple[str, ...]:
        """The fact types of the reward models, in the order of the service's configuration."""
        return tuple(card.id for card in self.models)

    @property
    def trained_on(self) -> tuple[TrainedOn, ...]:
        """What the reward models were trained on, each once."""
        return tuple(dict.fromkeys(card.trained_on for card in self.models if card.trained_on is not None))


RemoteTexts = Annotated[
    list[Annotated[str, Field(max_length=MAX_QUERY_CHARACTERS)]], Field(max_length=MAX_ITEMS, fail_fast=True)
]


class RemoteRewardRequest(BaseModel):
    """OpenRLHF's remote-reward protocol: what its trainer posts; keys beyond these are ignored.

    Each label is, or is the JSON text of, `{"image": base64 or data URL, "prompt": the question}`, with a list under
    `images` in place of `image` where there are several: the protocol has no field for images.
    """

    model_config = ConfigDict(
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
        json_schema_extra={
            "examples": [
                {
                    "query": [f"USER: <image>\n{EXAMPLE_PROMPT} ASSISTANT: {EXAMPLE_RESPONSE}</s>"],
                    "prompts": [f"USER: <image>\n{EXAMPLE_PROMPT} ASSISTANT:"],
                    "labels": [{"image": EXAMPLE_IMAGE, "prompt": EXAMPLE_PROMPT}],
                }
            ]
        },
    )

    query: RemoteTexts
    """Prompt and response as decoded ids, special tokens and expanded image tokens included."""
    prompts: RemoteTexts
    labels: Annotated[list[Any], Field(max_length=MAX_ITEMS)]

    @model_validator(mode="after")
    def _same_length(self) -> "RemoteRewardRequest":
        if not len(self.query) == len(self.prompts) == len(self.labels):
            raise ValueError("query, prompts and labels must have the same length")
        return self


class RemoteRewardResponse(ResponseModel):
    """OpenRLHF's remote-reward protocol: what its trainer reads, each list as long as the query."""

    rewards: list[FiniteFloat]
    """Sum of the segments' rewards."""
    scores: list[FiniteFloat]
    """Mean reward of a segment, brought to 0..1 (the trainer filters prompts by it)."""
    extra_logs: dict[str, list[FiniteFloat]]


class Status(ResponseModel):
    """Answer of `/live` and `/ready`."""

    status: str
    model_version: str


class ErrorDetail(ResponseModel):
    """What went wrong."""

    code: str
    """Stable, for programs."""
    message: str
    """For people."""
    request_id: str


class ErrorResponse(ResponseModel):
    """The one shape of every error."""

    error: ErrorDetail

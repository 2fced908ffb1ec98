"""Verification of facts against the image, and the labels that follow: a Ray Data stage around a vLLM engine."""

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from PIL.Image import Image

from actors.chat import ImageChat
from actors.engine import image_prompt, start_engine
from fgaif_ray import storage
from fgaif_ray.config import LabelConfig
from fgaif_ray.errors import UserError
from fgaif_ray.feedback.labels import is_consistent, segment_labels, yes_probability
from fgaif_ray.feedback.overrides import Overrides
from fgaif_ray.feedback.prompts import load_prompt
from fgaif_ray.images import load_image
from fgaif_ray.records import FEEDBACK_SCHEMA, REJECTED_SCHEMA, fingerprint

if TYPE_CHECKING:
    from vllm.inputs import TokensPrompt

COUNTS_SCHEMA: Final = pa.schema(
    [
        pa.field("labelled", pa.int64()),
        pa.field("rejected", pa.int64()),
        pa.field("questions", pa.int64()),
        pa.field("answer_mass", pa.float64()),  # sum over the questions of P(yes) + P(no), of the whole vocabulary
        pa.field("fatal", pa.string()),
    ]
)

Question = tuple[str, str]
"""Hash of the image, text of the fact."""


@dataclass(frozen=True, slots=True)
class Answer:
    """``p_yes`` is P(yes) / (P(yes) + P(no)); ``mass`` the share of the two among all tokens."""

    p_yes: float
    mass: float


def annotator_description(config: LabelConfig) -> str:
    """The ``annotator`` column: what the labels depend on, as JSON."""
    extractor, verifier = config.extractor, config.verifier
    return json.dumps(
        {
            "extractor": {"model": extractor.model, "prompt": extractor.prompt, "mode": extractor.mode},
            "verifier": {"model": verifier.model, "prompt": verifier.prompt, "threshold": verifier.threshold},
        }
    )


class Verifier:
    """Asks whether each fact is right according to the image, labels the sub-sentences and writes the block.

    Takes tables of ``EXTRACTED_SCHEMA`` and returns one row of ``COUNTS_SCHEMA``. Rejected rows are written before
    labelled ones, so that an interruption in between loses nothing and repeats only the labelled ones.
    """

    def __init__(self, config: LabelConfig, partial: str, rejected_partial: str) -> None:
        self._verifier = config.verifier
        self._annotator = annotator_description(config)
        self._partial = partial
        self._rejected_partial = rejected_partial
        self._overrides = Overrides.load(config)
        self._prompt = load_prompt(config.verifier.prompt)
        self._chat = ImageChat(config.verifier.model)
        self._engine = start_engine(config.verifier.model, config.verifier.engine)
        self._words = self._chat.tokens_of("yes") | self._chat.tokens_of("no")

    def __call__(self, extracted: pa.Table) -> pa.Table:
        rows = extracted.to_pylist()
        fatal = next((row["fatal"] for row in rows if row["fatal"] is not None), None)
        if fatal is not None:
            return pa.Table.from_pylist([{"fatal": fatal}], schema=COUNTS_SCHEMA)
        images: dict[str, Image] = {}
        for row in rows:
            row["facts"] = json.loads(row["facts"]) if row["facts"] is not None else None
            if row["facts"] is not None and row["image_sha256"] not in images:
                try:
                    images[row["image_sha256"]] = load_image(row["image"])
                except UserError as error:
                    row["reason"] = f"image: {error}"
        answers, refused = self._answer(self._questions(rows), images)
        for row in rows:
            if row["reason"] is None:
                questions = ((row["image_sha256"], fact["text"]) for facts in row["facts"] for fact in facts)
                row["reason"] = next((refused[question] for question in questions if question in refused), None)
        labelled = [self._label(row, answers) for row in rows if row["reason"] is None]
        rejected = [row for row in rows if row["reason"] is not None]
        name = fingerprint([row["sample_id"] for row in rows])
        if rejected:
            storage.write_part(self._rejected_partial, rejected, REJECTED_SCHEMA, name)
        if labelled:
            storage.write_part(self._partial, labelled, FEEDBACK_SCHEMA, name)
        counts = {
            "labelled": len(labelled),
            "rejected": len(rejected),
            "questions": len(answers),
            "answer_mass": math.fsum(answer.mass for answer in answers.values()),
        }
        return pa.Table.from_pylist([counts], schema=COUNTS_SCHEMA)

    @staticmethod
    def _questions(rows: list[dict[str, Any]]) -> list[Question]:
        """Each question once; those about one image follow each other, so that its prefix is in the cache."""
        by_image: dict[str, dict[str, None]] = {}
        for row in rows:
            if row["reason"] is None:
                texts = by_image.setdefault(row["image_sha256"], {})
                texts.update(dict.fromkeys(fact["text"] for segment in row["facts"] for fact in segment))
        return [(image, text) for image, texts in by_image.items() for text in texts]

    def _answer(
        self, questions: list[Question], images: dict[str, Image]
    ) -> tuple[dict[Question, Answer], dict[Question, str]]:
        """The answers, and the reasons of questions that cannot be asked: a fact is somebody else's text."""
        from vllm import SamplingParams

        prompts: dict[Question, TokensPrompt] = {}
        refused: dict[Question, str] = {}
        for image, text in questions:
            try:
                token_ids = self._chat.token_ids(self._prompt.render(statement=text))
            except ValueError as error:
                refused[image, text] = f"fact: {error}"
                continue
            if len(token_ids) + self._chat.image_tokens > self._verifier.engine.max_model_len:
                refused[image, text] = "fact: it is longer than label.verifier.engine.max_model_len allows"
            else:
                prompts[image, text] = image_prompt(token_ids, images[image])
        # Greedy: verdicts that are sampled cannot be reproduced.
        parameters = SamplingParams(
            temperature=0.0, max_tokens=1, logprob_token_ids=list(self._words), detokenize=False
        )
        results: list[Any] = self._engine.generate(list(prompts.values()), parameters, use_tqdm=False)
        answers = {
            question: self._read(result.outputs[0].logprobs[0])
            for question, result in zip(prompts, results, strict=True)
        }
        return answers, refused

    def _read(self, logprobs: dict[int, Any]) -> Answer:
        values = {token: logprobs[token_id].logprob for token_id, token in self._words.items()}
        p_yes = yes_probability(values)
        if p_yes is None:
            raise ValueError(f"the engine gave no probability to any of {sorted(values)}")
        return Answer(p_yes, math.fsum(math.exp(value) for value in values.values()))

    def _label(self, row: dict[str, Any], answers: dict[Question, Answer]) -> dict[str, Any]:
        segments = []
        for (start, end), facts in zip(row["spans"], row["facts"], strict=True):
            for fact in facts:
                fact["p_consistent"] = answers[row["image_sha256"], fact["text"]].p_yes
                fact["consistent"] = is_consistent(fact["p_consistent"], self._verifier.threshold)
            labels = segment_labels((fact["type"], fact["consistent"]) for fact in facts)
            text = row["response"][start:end]
            segments.append({"start": start, "end": end, "text": text, "facts": facts, "labels": labels})
        return row | {"segments": self._overrides.apply(row["sample_id"], segments), "annotator": self._annotator}

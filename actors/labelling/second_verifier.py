"""The second verification: a Ray Data stage that goes over labelled parts once more.

It is a separate pass, after the first verifier's engines are gone, so that a machine holds one of the two at a time.
Parts are replaced whole, and one that both have verified says so in its ``annotator``: an interrupted pass resumes
there.
"""

import json
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import ray
from PIL.Image import Image

from actors.engine.block_counts import BlockCounts
from actors.labelling.checks import CHECKS_FOLDER, CHECKS_SCHEMA, VerificationCheck
from actors.labelling.fact_checker import FactChecker, FactQuestion, Findings, YesProbability
from actors.labelling.metrics import record_prompt_tokens, record_verified_again
from actors.labelling.verifier import Verification
from fgaif_ray import storage
from fgaif_ray.errors import UserError
from fgaif_ray.images import load_images
from fgaif_ray.pixel_budget import PixelBudget
from fgaif_ray.records import Feedback, JudgedFact, Response, feedback_schema
from fgaif_ray.vlm.prompt_check import PromptMismatchError

ANNOTATOR_KEY = "second_verifier"


def parts_left(folder: str) -> list[tuple[str, int]]:
    """Find the parts of a stage folder that the second verifier has not seen, with their numbers of rows."""
    left = []
    for part in storage.list_parts(folder):
        with storage.open_part(part) as parquet:
            batch = next(parquet.iter_batches(1, columns=["annotator"]), None)
            if batch is not None and ANNOTATOR_KEY not in json.loads(batch.column(0)[0].as_py()):
                left.append((part, parquet.metadata.num_rows))
    return left


class SecondVerifier:
    """A worker that asks the second verifier about every fact of a part, relabels the responses and replaces the part.

    It takes tables with one part's id and returns the table of ``BlockCounts``. A fact that it cannot be asked
    about, as its image or its length forbids, stays without a second P(yes).
    """

    def __init__(self, verification: Verification, parts: "ray.ObjectRef[list[str]]") -> None:
        second = verification.config.second_verifier
        assert second is not None
        self._partial = verification.partial
        self._parts: list[str] = ray.get(parts)
        self._labeller = verification.labeller(both=True)
        self._schema = feedback_schema(verification.types)
        self._checker = FactChecker(second, verification.template, verification.images_per_prompt)
        self._budget = verification.budget

    def __call__(self, numbers: pa.Table) -> pa.Table:
        (number,) = numbers.column("id").to_pylist()
        part = self._parts[number]
        given = [Feedback.from_row(row) for row in storage.read_part(part)]
        images = _readable_images([feedback.response for feedback in given], self._budget)
        questions: list[FactQuestion] = [
            (feedback.response.image_sha256, fact.text)
            for feedback in given
            if feedback.response.image_sha256 in images
            for segment in feedback.segments
            for fact in segment.facts
        ]
        names = {one.response.image_sha256: ", ".join(one.response.images) for one in given}
        try:
            found = self._checker.ask(questions, images, names)
        except PromptMismatchError as error:
            return BlockCounts(fatal=str(error)).to_table()
        record_prompt_tokens("second", found)
        name = part.rsplit("/", 1)[-1].removeprefix("part-").removesuffix(".parquet")
        checks = [VerificationCheck.of(True, found, questions).to_row()]
        storage.write_part(storage.join(self._partial, CHECKS_FOLDER), checks, CHECKS_SCHEMA, f"second-{name}")
        labelled = [self._label(feedback, found) for feedback in given]
        record_verified_again(labelled)
        storage.write_part(self._partial, [feedback.to_row() for feedback in labelled], self._schema, name)
        return BlockCounts(done=len(labelled)).to_table()

    def _label(self, feedback: Feedback, found: Findings) -> Feedback:
        """Label a response again, with the second verifier's answers."""
        image = feedback.response.image_sha256
        segments = []
        for segment in feedback.segments:
            facts = (_with_second(fact, found.answers.get((image, fact.text))) for fact in segment.facts)
            segments.append(replace(segment, facts=tuple(facts)))
        return self._labeller.label(feedback.response, segments)


def _with_second(fact: JudgedFact, answer: YesProbability | None) -> JudgedFact:
    return replace(fact, second_p_consistent=None if answer is None else answer.p_yes)


def _readable_images(responses: Sequence[Response], budget: PixelBudget) -> dict[str, Sequence[Image]]:
    images: dict[str, Sequence[Image]] = {}
    for response in responses:
        if response.image_sha256 not in images:
            try:
                images[response.image_sha256] = load_images(response.images, budget)
            except UserError:
                continue  # it was there for the first verifier; its facts are counted as unanswered
    return images

"""The second verification: a Ray Data stage that goes over labelled parts once more.

It is a separate pass, after the first verifier's engines are gone, so that a machine holds one of the two at a time.
Parts are replaced whole, and one that both have verified says so in its ``annotator``: an interrupted pass resumes
there.
"""

import json
from typing import Any

import pyarrow as pa
import ray
from PIL.Image import Image

from actors.labelling.fact_checker import FactChecker, FactQuestion
from actors.labelling.metrics import record_prompt_tokens, record_verified_again
from actors.labelling.verifier import CHECKS_FOLDER, CHECKS_SCHEMA, COUNTS_SCHEMA, Verification, checks_of
from fgaif_ray import storage
from fgaif_ray.errors import UserError
from fgaif_ray.images import load_image
from fgaif_ray.pixel_budget import PixelBudget
from fgaif_ray.records import feedback_schema

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

    It takes tables with one part's id and returns one row of ``COUNTS_SCHEMA``. A fact that it cannot be asked
    about, as its image or its length forbids, stays without a second P(yes).
    """

    def __init__(self, verification: Verification, parts: "ray.ObjectRef[list[str]]") -> None:
        second = verification.config.second_verifier
        assert second is not None
        self._partial = verification.partial
        self._parts: list[str] = ray.get(parts)
        self._labeller = verification.labeller(both=True)
        self._schema = feedback_schema(verification.types)
        self._checker = FactChecker(second)
        self._budget = verification.budget

    def __call__(self, numbers: pa.Table) -> pa.Table:
        (number,) = numbers.column("id").to_pylist()
        part = self._parts[number]
        rows = storage.read_part(part)
        images = _readable_images(rows, self._budget)
        questions: list[FactQuestion] = [
            (row["image_sha256"], fact["text"])
            for row in rows
            if row["image_sha256"] in images
            for segment in row["segments"]
            for fact in segment["facts"]
        ]
        found = self._checker.ask(questions, images)
        for row in rows:
            for segment in row["segments"]:
                for fact in segment["facts"]:
                    answer = found.answers.get((row["image_sha256"], fact["text"]))
                    fact["second_p_consistent"] = None if answer is None else answer.p_yes
        record_prompt_tokens("second", found)
        name = part.rsplit("/", 1)[-1].removeprefix("part-").removesuffix(".parquet")
        checks = [checks_of(True, found, questions)]
        storage.write_part(storage.join(self._partial, CHECKS_FOLDER), checks, CHECKS_SCHEMA, f"second-{name}")
        labelled = [self._labeller.label(row) for row in rows]
        record_verified_again(labelled)
        storage.write_part(self._partial, labelled, self._schema, name)
        counts = {"labelled": len(rows), "rejected": 0}
        return pa.Table.from_pylist([counts], schema=COUNTS_SCHEMA)


def _readable_images(rows: list[dict[str, Any]], budget: PixelBudget) -> dict[str, Image]:
    images: dict[str, Image] = {}
    for row in rows:
        if row["image_sha256"] not in images:
            try:
                images[row["image_sha256"]] = load_image(row["image"], budget)
            except UserError:
                continue  # it was there for the first verifier; its facts are counted as unanswered
    return images

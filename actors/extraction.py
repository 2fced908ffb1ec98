"""Extraction of atomic facts: a Ray Data stage around the client of an OpenAI-compatible endpoint."""

import asyncio
import json
from dataclasses import asdict, dataclass
from typing import Any, Final

import openai
import pyarrow as pa
from pydantic import SecretStr

from actors.journal import Extraction, ExtractionJournal
from fgaif_ray.config import ExtractorConfig
from fgaif_ray.errors import UserError
from fgaif_ray.feedback.extraction import ExtractionError
from fgaif_ray.feedback.extractor import FactExtractor
from fgaif_ray.feedback.prompts import load_prompt
from fgaif_ray.records import RESPONSES_SCHEMA
from fgaif_ray.segments import split_segments

CHECK_TIMEOUT_S: Final = 30.0
KEPT: Final = "kept"
"""Column of the input: the answer that an interrupted run has kept for this row, as JSON, or null."""
TASK_SCHEMA: Final = pa.schema([*RESPONSES_SCHEMA, pa.field(KEPT, pa.string())])
EXTRACTED_SCHEMA: Final = pa.schema(
    [
        *RESPONSES_SCHEMA,
        pa.field("spans", pa.list_(pa.list_(pa.int32())), nullable=False),  # [segments] pairs (start, end)
        pa.field("facts", pa.string()),  # JSON, [segments] lists of {"type", "text"}; null where rejected
        pa.field("reason", pa.string()),  # of a rejection
        pa.field("fatal", pa.string()),  # why the job has to stop
    ]
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the extraction model answers; ``api_key`` shows in no log."""

    base_url: str | None
    api_key: SecretStr | None


def new_extractor(config: ExtractorConfig, endpoint: Endpoint) -> FactExtractor:
    """The extractor of these settings; nothing is called yet.

    Raises:
        UserError: there is no such prompt, or it does not support the mode.
    """
    return FactExtractor(
        endpoint.base_url,
        endpoint.api_key.get_secret_value() if endpoint.api_key else None,
        config.model,
        load_prompt(config.prompt),
        mode=config.mode,
        concurrency=config.concurrency,
        timeout_s=config.timeout_s,
        max_retries=config.max_retries,
        max_tokens=config.max_tokens,
    )


def check_endpoint(config: ExtractorConfig, endpoint: Endpoint) -> None:
    """Find out what can be wrong with the settings and the endpoint before anything is started or paid.

    Raises:
        UserError: the prompt cannot be used, the endpoint does not answer, or it refuses the key.
    """
    new_extractor(config, endpoint)
    key = endpoint.api_key.get_secret_value() if endpoint.api_key else "none"
    with openai.OpenAI(base_url=endpoint.base_url, api_key=key, timeout=CHECK_TIMEOUT_S) as client:
        try:
            client.models.list()
        except openai.APIConnectionError as error:
            raise UserError(
                f"The extraction endpoint {client.base_url} does not answer: start it or correct "
                "label.extractor.base_url."
            ) from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise UserError(
                f"The extraction endpoint {client.base_url} refused the API key: set the environment variable "
                f"{config.api_key_env} to a valid one."
            ) from error
        except openai.APIError:
            return  # not every endpoint lists its models; the calls themselves will tell


class FactExtraction:
    """Adds the facts of its sub-sentences to every response of a block.

    Takes tables of ``TASK_SCHEMA`` and returns tables of ``EXTRACTED_SCHEMA``. Several blocks are worked on at a time,
    in one event loop and with one limit of calls in flight. When the endpoint cannot be used, this block and the
    following ones come back with ``fatal`` set and without facts: answers already received are in the journal.
    """

    def __init__(self, config: ExtractorConfig, endpoint: Endpoint, partial: str) -> None:
        self._extractor = new_extractor(config, endpoint)
        self._journal = ExtractionJournal(partial)
        self._reported = asdict(self._extractor.usage)
        self._fatal: str | None = None

    async def __call__(self, tasks: pa.Table) -> pa.Table:
        rows = tasks.to_pylist()
        try:
            async with asyncio.TaskGroup() as group:
                extractions = [group.create_task(self._extract(row)) for row in rows]
        except* UserError as failures:
            self._fatal = self._fatal or str(failures.exceptions[0])
            self._journal.append(
                Extraction("", None, None, self._new_usage())
            )  # of the responses that are not finished
        self._journal.flush()
        for row, extraction in zip(rows, extractions, strict=True):
            row["fatal"] = self._fatal
            if self._fatal is None:
                row |= extraction.result()
            else:
                row["spans"] = []
        return pa.Table.from_pylist(rows, schema=EXTRACTED_SCHEMA)

    async def _extract(self, row: dict[str, Any]) -> dict[str, Any]:
        """Columns ``spans``, ``facts`` and ``reason`` of one response."""
        if self._fatal is not None:
            raise UserError(self._fatal)
        spans = [(span.start, span.end) for span in split_segments(row["response"])]
        kept = row.pop(KEPT)
        if kept is None:
            extraction = await self._ask(row, [row["response"][start:end] for start, end in spans])
        else:
            extraction = Extraction.from_json(kept)
        facts = None if extraction.facts is None else json.dumps(extraction.facts)
        return {"spans": spans, "facts": facts, "reason": extraction.reason}

    async def _ask(self, row: dict[str, Any], segments: list[str]) -> Extraction:
        facts, reason = None, None
        try:
            answer = await self._extractor.extract(row["response"], segments)
            facts = [[{"type": fact.type, "text": fact.text} for fact in segment] for segment in answer]
        except ExtractionError as error:
            reason = str(error)
        extraction = Extraction(row["sample_id"], facts, reason, self._new_usage())
        self._journal.append(extraction)
        return extraction

    def _new_usage(self) -> dict[str, int]:
        usage = asdict(self._extractor.usage)
        new = {name: count - self._reported[name] for name, count in usage.items()}
        self._reported = usage
        return new

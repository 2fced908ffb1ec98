"""Extraction of atomic facts: a Ray Data stage around the client of an OpenAI-compatible endpoint."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import ray
from pydantic import SecretStr

from actors.labelling.call_metrics import MeteredCalls
from actors.labelling.coordinator import CoordinatorAddress, RemoteCoordinator
from actors.labelling.extracted import ExtractedResponse, seal_extracted, seal_fatal
from fgaif_ray.calls.answers import AnswerIndex, CallAnswer, cache_folder
from fgaif_ray.calls.calls import Calls, KnownCalls, UnansweredError
from fgaif_ray.calls.chat_caller import check_address
from fgaif_ray.calls.client import CallClient
from fgaif_ray.calls.coordinator import CallCoordinator
from fgaif_ray.calls.garbage import spare_the_loaded
from fgaif_ray.calls.unusable import UnusableAnswer
from fgaif_ray.config import ExtractorConfig
from fgaif_ray.errors import UserError
from fgaif_ray.fact_types import FactType, extracted
from fgaif_ray.feedback.extractor import FactExtractor
from fgaif_ray.feedback.pending import Pending, PlaceReader, first_text, places_of
from fgaif_ray.feedback.prompts import load_prompt
from fgaif_ray.records import RESPONSES_SCHEMA, Response
from fgaif_ray.segments import ENGLISH, split_segments


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The extraction model's endpoint; logs do not show ``api_key``."""

    base_url: str | None
    api_key: SecretStr | None

    @property
    def plain_key(self) -> str | None:
        """The key as it is sent."""
        return self.api_key.get_secret_value() if self.api_key else None


def new_extractor(
    config: ExtractorConfig,
    endpoint: Endpoint,
    fact_types: Sequence[FactType],
    calls: Calls | None = None,
    identity: str | None = None,
) -> FactExtractor:
    """Build the extractor of these settings without calling anything.

    Args:
        config: the settings.
        endpoint: where to call.
        fact_types: of the run; those that are derived are not asked about.
        calls: known answers, limits and account; None calls freely.
        identity: of the model, see ``model_identity``; None finds it out.

    Raises:
        UserError: there is no such prompt, or it does not support the mode.
    """
    prompt = load_prompt(config.prompt, extracted(fact_types))
    return FactExtractor(config, prompt, endpoint.base_url, endpoint.plain_key, calls, identity)


def check_endpoint(config: ExtractorConfig, endpoint: Endpoint, fact_types: Sequence[FactType]) -> None:
    """Check the settings and the endpoint before anything is started or paid.

    Raises:
        UserError: the prompt cannot be used, the endpoint does not answer, or it refuses the key.
    """
    new_extractor(config, endpoint, fact_types)
    check_address(config, endpoint.base_url, endpoint.plain_key)


class FactExtraction:
    """A worker that adds the facts of its segments to every response of a block.

    It takes block ids, in a column ``id``, and returns what ``seal_extracted`` does.
    Several blocks are worked on at a time, in one event loop and with one limit of calls in flight. When the endpoint
    cannot be used or the budget is spent, ``seal_fatal`` stands for this block and the following ones of every worker:
    calls that were under way are waited for, and their answers are kept.
    """

    def __init__(
        self,
        config: ExtractorConfig,
        endpoint: Endpoint,
        run: str,
        coordinator: CoordinatorAddress,
        identity: str,
        places: "ray.ObjectRef[pa.Table]",
        fact_types: Sequence[FactType],
        language: str = ENGLISH,
    ) -> None:
        self._language = language
        self._calls = CallClient(RemoteCoordinator(coordinator), config, run, ray.get_runtime_context().get_actor_id())
        self._extractor = new_extractor(config, endpoint, fact_types, MeteredCalls(self._calls, config), identity)
        self._reject_failed = config.reject_failed
        self._places: pa.Table = ray.get(places)
        self._reader = PlaceReader(RESPONSES_SCHEMA.names)
        self._reading = asyncio.Lock()
        spare_the_loaded()

    async def __call__(self, blocks: pa.Table) -> pa.Table:
        if self._calls.stopped is not None:
            return seal_fatal(self._calls.stopped)
        places = pa.concat_tables(places_of(self._places, block) for block in blocks.column("id").to_pylist())
        async with self._reading:
            responses = [Response.from_row(row) for row in await asyncio.to_thread(self._reader.read, places)]
        results = await asyncio.gather(*map(self._extract, responses), return_exceptions=True)
        # Ray repeats a task whose reply was lost, so what was paid is kept before the reply.
        await self._calls.flush()
        extracted_rows: list[ExtractedResponse] = []
        for result in results:
            if isinstance(result, UserError):
                return seal_fatal(str(result))
            if isinstance(result, BaseException):
                raise result
            extracted_rows.append(result)
        return seal_extracted(extracted_rows)

    async def _extract(self, response: Response) -> ExtractedResponse:
        spans = tuple(split_segments(response.text, self._language))
        try:
            answer = await self._extractor.extract(
                response.text, [response.text[span.start : span.end] for span in spans]
            )
        except UnusableAnswer as error:
            stays_pending = error.is_of_endpoint and not self._reject_failed
            return ExtractedResponse(
                response=response,
                spans=spans,
                facts=None,
                reason=None if stays_pending else str(error),
                unavailable=str(error) if stays_pending else None,
            )
        return ExtractedResponse(response=response, spans=spans, facts=tuple(map(tuple, answer)))


def first_unanswered(
    config: ExtractorConfig, run: str, pending: Pending, fact_types: Sequence[FactType], language: str = ENGLISH
) -> str | None:
    """Find the first pending response with a question that no kept answer covers."""
    index = AnswerIndex(cache_folder(run, config.cache))
    try:

        def find(key: str) -> CallAnswer | None:
            text = index.find(key)
            return None if text is None else CallAnswer.from_json(json.loads(text))

        extractor = new_extractor(config, Endpoint(None, None), fact_types, KnownCalls(find))

        async def is_unanswered(response: str) -> bool:
            try:
                await extractor.extract(response, _segments(response, language))
            except UnansweredError:
                return True
            except UnusableAnswer:
                return False
            return False

        with asyncio.Runner() as runner:
            return first_text(pending, "response", lambda response: runner.run(is_unanswered(response)))
    finally:
        index.close()


def ask_about(
    response: str,
    config: ExtractorConfig,
    endpoint: Endpoint,
    run: str,
    fact_types: Sequence[FactType],
    language: str = ENGLISH,
) -> None:
    """Make the calls of one response, so that an endpoint, a key, a model or a budget that cannot be used shows before
    Ray and engines start. The answers are kept and accounted for as all others are.

    Raises:
        UserError: the endpoint cannot be used or fails on this response, or the budget is used up.
    """

    async def ask() -> None:
        coordinator = CallCoordinator(config, run)
        calls = CallClient(coordinator, config, run)
        extractor = new_extractor(config, endpoint, fact_types, calls)
        try:
            await extractor.extract(response, _segments(response, language))
        except UnusableAnswer as error:
            if (error.is_of_endpoint or error.reason == "rejected") and not config.reject_failed:
                raise UserError(
                    f"The {config.purpose} endpoint fails on the first response ({str(error).rstrip('.')}): correct "
                    f"{config.section} and run the same command again, or leave out what it fails on with "
                    f"--set {config.section}.reject_failed=true."
                ) from error
        finally:
            await extractor.close()
            await calls.close()
            coordinator.close()

    asyncio.run(ask())


def _segments(response: str, language: str) -> list[str]:
    return [response[span.start : span.end] for span in split_segments(response, language)]

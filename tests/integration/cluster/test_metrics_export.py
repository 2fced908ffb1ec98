"""What actors record comes out of Ray's own metrics endpoint under the names that the dashboard asks for."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from support.fake_openai import FakeOpenAI, Misbehaving
from support.label_helpers import PRICE, answer_by_rule, make_config, write_responses
from support.local_gateway import TOKEN, WEIGHTS, LocalScorer, local_gateway, served
from support.metrics_endpoint import PATIENCE_S, Samples, exported_names, scrape, scrape_until, total
from support.reward_helpers import PROMPT, RESPONSE, picture

from actors import metrics
from actors.alignment.metrics import record_guards, record_step, record_stop
from actors.engine.blocks import table_of, unseal
from actors.labelling.coordinator import start_coordinator
from actors.labelling.extraction import Endpoint, FactExtraction
from actors.metrics.count_down import count_down
from actors.sampling.provided import write_provided_blocks
from fgaif_ray.calls.ledger import read_ledger
from fgaif_ray.config import DataConfig
from fgaif_ray.feedback.pending import digests, find_pending
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.rewards.composition import RewardOptions
from fgaif_ray.serving.client import RewardClient, RewardServiceError, reward_item
from fgaif_ray.sources import PROVIDED_SCHEMA, ProvidedResponse

pytestmark = pytest.mark.ray
IMAGES = 4
KEPT: list[Any] = []
FIGURES = (
    "reward/total", "facts/per_response", "kl/per_response", "kl/coefficient", "policy/entropy", "policy/clip_share",
    "critic/explained_variance_before", "response/length", "goodput/step_share", "rollout/staleness",
    "rollout/log_prob_difference", "count/tokens", "count/missing_rewards", "update/skipped", "timing/step",
    *(f"{figure}/{fact_type}" for figure in ("reward", "hallucination") for fact_type in FACT_TYPES),
)  # fmt: skip


def take_given_responses(folder: Path) -> None:
    """Two responses that came with the data, and one whose image is no image."""
    image = folder / "image.png"
    image.write_bytes(picture())
    broken = folder / "broken.png"
    broken.write_text("no image")
    given = [ProvidedResponse(image=str(path), prompt=PROMPT, text=RESPONSE) for path in (image, image, broken)]
    blocks = [("given-000000", table_of(given, PROVIDED_SCHEMA))]
    assert list(
        count_down("sample", 5, write_provided_blocks(blocks, str(folder / "given"), DataConfig(source="shapes")))
    )  # one is rejected


def in_a_process(make: Callable[[], Any], call: Callable[[Any], Any]) -> tuple[Any, str]:
    """What a call of an actor's own class gives in a process of the cluster, and the id of that process."""

    class Process:
        def __init__(self) -> None:
            self.made = make()

        async def run(self) -> tuple[Any, str]:
            return await call(self.made), ray.get_runtime_context().get_worker_id()

    process: Any = ray.remote(Process).options(num_cpus=0).remote()
    result: tuple[Any, str] = ray.get(process.run.remote())
    KEPT.append(process)  # its gauges are exported as long as it lives
    return result


def extract_facts(folder: Path, endpoint: FakeOpenAI) -> str:
    """Extraction of a few responses by a real worker; returns its id."""
    config = make_config(folder, endpoint.url, IMAGES)
    write_responses(config)
    pending = find_pending(str(folder / "responses"), digests([]), IMAGES)
    address, coordinator = start_coordinator(config.label.extractor, str(folder))
    arguments = {
        "config": config.label.extractor,
        "endpoint": Endpoint(endpoint.url, None),
        "run": str(folder),
        "coordinator": address,
        "places": ray.put(pending.places),
        "identity": "rules",
        "fact_types": config.run.types,
    }
    sealed, worker = in_a_process(lambda: FactExtraction(**arguments), lambda stage: stage(pa.table({"id": [0]})))
    ray.kill(coordinator)
    assert len(unseal(sealed)) == IMAGES
    return worker


def ask_the_gateway(folder: Path) -> None:
    """One request that is answered and one that is refused, over HTTP, and one from inside."""
    gateway = local_gateway(LocalScorer(folder), RewardOptions(weights=WEIGHTS))
    with served(gateway) as url, RewardClient(url, token=TOKEN) as client:
        client.score([reward_item(picture(), PROMPT, RESPONSE)] * 3)
        with pytest.raises(RewardServiceError):
            client.score([reward_item(b"no image", PROMPT, RESPONSE)])
        item = {"image": picture(), "prompt": PROMPT, "response": RESPONSE, "response_token_ids": None}
        asyncio.run(gateway.score_responses([item]))


def step_of_ppo() -> None:
    """What the learner records after a step that a guard ends."""
    figures = dict.fromkeys(FIGURES, 0.5) | {"policy/clip_share": float("nan")}
    record_step(3, 10, figures)
    record_guards({"KL explosion": 3})
    record_stop(
        "KL explosion: 9 nats per token to the reference, more than 2 for 3 steps in a row; raise the KL weight"
    )


@dataclass(frozen=True)
class Run:
    folder: str
    workers: tuple[str, ...]
    """Of the driver and the extraction."""


@pytest.fixture(scope="module")
def run(ray_cluster: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("run")
    take_given_responses(folder)
    ask_the_gateway(folder / "gateway")
    step_of_ppo()
    with FakeOpenAI(Misbehaving(answer_by_rule, failing=0.3)) as endpoint:
        extraction = extract_facts(folder, endpoint)
    yield Run(str(folder), (ray.get_runtime_context().get_worker_id(), extraction))
    KEPT.clear()


@pytest.fixture(scope="module")
def samples(run: Run) -> Samples:
    recorded = [
        metrics.STAGE_PENDING_ROWS, metrics.EXTRACTION_CALLS, metrics.EXTRACTION_TOKENS,
        metrics.EXTRACTION_COST, metrics.EXTRACTION_DURATION, metrics.EXTRACTION_FAILURES, metrics.EXTRACTION_WAIT,
        metrics.REWARD_REQUESTS, metrics.REWARD_REQUEST_DURATION, metrics.REWARD_REJECTIONS, metrics.REWARD_ITEMS,
        metrics.REWARD_WAITING_ITEMS,
        metrics.PPO_STEP, metrics.PPO_REWARD, metrics.PPO_TOKENS, metrics.PPO_PHASE_DURATION, metrics.PPO_GUARD_STREAK,
        metrics.PPO_GUARD_TRIPS,
    ]  # fmt: skip
    return scrape_until((name for metric in recorded for name in exported_names(metric)), run.workers)


def test_calls_tokens_and_money_are_those_of_the_ledger(run: Run, samples: Samples) -> None:
    ledger = read_ledger(run.folder)
    assert ledger.retries > 0
    assert total(samples, "ray_fgaif_extraction_calls_total") == ledger.calls
    assert total(samples, "ray_fgaif_extraction_calls_total", kind="retry") == ledger.retries
    assert total(samples, "ray_fgaif_extraction_failures_total") == ledger.failed_by_reason.total()
    tokens = [total(samples, "ray_fgaif_extraction_tokens_total", kind=kind) for kind in ("prompt", "completion")]
    assert tokens == [ledger.prompt_tokens, ledger.completion_tokens]
    spent = (tokens[0] * PRICE["input_per_million"] + tokens[1] * PRICE["output_per_million"]) / 1e6
    assert total(samples, "ray_fgaif_extraction_cost_total") == pytest.approx(spent)
    assert total(samples, "ray_fgaif_extraction_call_duration_seconds_count") == ledger.calls


def test_what_tasks_record_is_there_too(run: Run) -> None:
    name, until = "ray_fgaif_sampled_responses_total", time.monotonic() + PATIENCE_S
    while name not in (found := scrape()):
        assert time.monotonic() < until
        time.sleep(1)
    assert total(found, name, outcome="given") >= 2 and total(found, name, outcome="rejected") >= 1


def test_rows_that_are_left_are_told(samples: Samples) -> None:
    assert total(samples, "ray_fgaif_stage_pending_rows", stage="sample") == 2


def test_requests_to_the_gateway_are_counted_by_route_and_status(samples: Samples) -> None:
    name = "ray_fgaif_reward_requests_total"
    assert total(samples, name, route="/v1/rewards", status="200") >= 1
    assert total(samples, name, route="/v1/rewards", status="422") >= 1
    assert total(samples, name, route="handle", status="200") >= 1
    assert total(samples, "ray_fgaif_reward_rejections_total", code="invalid_image") >= 1
    assert total(samples, "ray_fgaif_reward_items_total", outcome="scored") >= 4


def test_a_step_is_shown_and_what_could_not_be_measured_is_not(samples: Samples) -> None:
    assert total(samples, "ray_fgaif_ppo_step") == 3
    assert total(samples, "ray_fgaif_ppo_guard_trips_total", guard="KL explosion") >= 1
    assert "ray_fgaif_ppo_clip_ratio" not in samples


def test_every_sample_has_the_session_that_the_dashboard_chooses_by(samples: Samples) -> None:
    ours = [labels for name, found in samples.items() if name.startswith("ray_fgaif_") for labels, _ in found]
    assert all(labels["SessionName"].startswith("session_") for labels in ours)

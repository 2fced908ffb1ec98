"""What actors record comes out of Ray's own metrics endpoint under the names that the dashboard asks for."""

import asyncio
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from fake_openai import FakeOpenAI, Misbehaving
from label_helpers import PRICE, answer_by_rule, make_config, write_responses
from local_gateway import TOKEN, WEIGHTS, LocalScorer, local_gateway, served
from metrics_endpoint import Samples, scrape_until, total
from reward_helpers import CHECKPOINT, PROMPT, RESPONSE, picture, save_reward_models

from actors import metrics
from actors.call_desk import start_call_desk
from actors.extraction import Endpoint, FactExtraction
from actors.given import GIVEN_SCHEMA, write_given_blocks
from actors.ppo_metrics import record_guards, record_step, record_stop
from actors.reward_service import RewardScorer, ScorerSettings
from actors.stage_metrics import count_down
from fgaif_ray.client import RewardClient, RewardServiceError, reward_item
from fgaif_ray.feedback.ledger import read_ledger
from fgaif_ray.feedback.pending import digests, find_pending
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.rl.rewards import RewardOptions
from fgaif_ray.scoring import probe_batch

pytestmark = pytest.mark.ray
IMAGES = 4
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
    rows = [{"image": str(path), "prompt": PROMPT, "response": RESPONSE} for path in (image, image, broken)]
    blocks = [("given-000000", pa.Table.from_pylist(rows, schema=GIVEN_SCHEMA))]
    assert list(count_down("sample", 5, write_given_blocks(blocks, str(folder / "given"))))


def extract_facts(folder: Path, endpoint: FakeOpenAI) -> str:
    """Extraction of a few responses by the real actor; returns the run."""
    config = make_config(folder, endpoint.url, IMAGES)
    write_responses(config)
    pending = find_pending(str(folder / "responses"), digests([]), IMAGES)
    address, desk = start_call_desk(config.label.extractor, str(folder))
    actor: Any = ray.remote(FactExtraction).options(num_cpus=0)
    worker = actor.remote(
        config.label.extractor,
        Endpoint(endpoint.url, None),
        str(folder),
        address,
        "rules",
        [ray.put(pending.places)][0],
    )
    table = ray.get(worker.__call__.remote(pa.table({"id": [0]})))
    assert len(table) == IMAGES
    del worker
    ray.kill(desk)
    return str(folder)


def score_in_a_replica(folder: Path) -> None:
    """One batch of a reward deployment's own class."""
    folders = save_reward_models(folder)
    settings = ScorerSettings(
        backbone=CHECKPOINT,
        dtype="float32",
        quantisation="none",
        temperature_scaling=False,
        folders={"existence": folders["existence"]},
        max_batch_size=4,
        batch_wait_timeout_s=0.0,
        threads=1,
        versions={"existence": "1"},
    )
    actor: Any = ray.remote(RewardScorer).options(num_cpus=0)
    replica = actor.remote(settings)
    assert len(ray.get(replica.score.remote(probe_batch())).outcomes) == 1


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


@pytest.fixture(scope="module")
def run(ray_cluster: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("run")
    take_given_responses(folder)
    score_in_a_replica(folder / "replica")
    ask_the_gateway(folder / "gateway")
    step_of_ppo()
    with FakeOpenAI(Misbehaving(answer_by_rule, failing=0.3)) as endpoint:
        return extract_facts(folder, endpoint)


@pytest.fixture(scope="module")
def samples(run: str) -> Samples:
    recorded = [
        metrics.STAGE_PENDING_ROWS, metrics.SAMPLED_RESPONSES, metrics.EXTRACTION_CALLS, metrics.EXTRACTION_TOKENS,
        metrics.EXTRACTION_COST, metrics.EXTRACTION_DURATION, metrics.EXTRACTION_FAILURES, metrics.EXTRACTION_WAIT,
        metrics.REWARD_REQUESTS, metrics.REWARD_REQUEST_DURATION, metrics.REWARD_REJECTIONS, metrics.REWARD_ITEMS,
        metrics.REWARD_WAITING_ITEMS, metrics.REWARD_BATCH_ITEMS, metrics.REWARD_FORWARD_DURATION,
        metrics.PPO_STEP, metrics.PPO_REWARD, metrics.PPO_TOKENS, metrics.PPO_PHASE_DURATION, metrics.PPO_GUARD_STREAK,
        metrics.PPO_GUARD_TRIPS,
    ]  # fmt: skip
    return scrape_until(name for metric in recorded for name in metric.exported_names)


def test_calls_tokens_and_money_are_those_of_the_ledger(run: str, samples: Samples) -> None:
    ledger = read_ledger(run)
    assert ledger.retries > 0
    assert total(samples, "ray_fgaif_extraction_calls_total") == ledger.calls
    assert total(samples, "ray_fgaif_extraction_calls_total", kind="retry") == ledger.retries
    assert total(samples, "ray_fgaif_extraction_failures_total") == ledger.failed_by_reason.total()
    tokens = [total(samples, "ray_fgaif_extraction_tokens_total", kind=kind) for kind in ("prompt", "completion")]
    assert tokens == [ledger.prompt_tokens, ledger.completion_tokens]
    spent = (tokens[0] * PRICE["input_per_million"] + tokens[1] * PRICE["output_per_million"]) / 1e6
    assert total(samples, "ray_fgaif_extraction_cost_total") == pytest.approx(spent)
    assert total(samples, "ray_fgaif_extraction_call_duration_seconds_count") == ledger.calls


def test_given_responses_and_what_is_left_are_counted(samples: Samples) -> None:
    assert total(samples, "ray_fgaif_sampled_responses_total", outcome="given") >= 2
    assert total(samples, "ray_fgaif_sampled_responses_total", outcome="rejected") >= 1


def test_requests_to_the_gateway_are_counted_by_route_and_status(samples: Samples) -> None:
    name = "ray_fgaif_reward_requests_total"
    assert total(samples, name, route="/v1/rewards", status="200") >= 1
    assert total(samples, name, route="/v1/rewards", status="422") >= 1
    assert total(samples, name, route="handle", status="200") >= 1
    assert total(samples, "ray_fgaif_reward_rejections_total", code="invalid_image") >= 1
    assert total(samples, "ray_fgaif_reward_items_total", outcome="scored") >= 4


def test_batches_of_a_replica_are_measured_by_model(samples: Samples) -> None:
    for name in ("ray_fgaif_reward_batch_items_count", "ray_fgaif_reward_forward_duration_seconds_count"):
        assert total(samples, name, model="existence") >= 1
    assert "ray_fgaif_reward_non_finite_items_total" not in samples


def test_a_step_is_shown_and_what_could_not_be_measured_is_not(samples: Samples) -> None:
    assert total(samples, "ray_fgaif_ppo_step") == 3
    assert total(samples, "ray_fgaif_ppo_guard_trips_total", guard="KL explosion") == 1
    assert "ray_fgaif_ppo_clip_ratio" not in samples


def test_every_sample_has_the_session_that_the_dashboard_chooses_by(samples: Samples) -> None:
    ours = [labels for name, found in samples.items() if name.startswith("ray_fgaif_") for labels, _ in found]
    assert all(labels["SessionName"].startswith("session_") for labels in ours)

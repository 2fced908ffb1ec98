"""A photograph before reward models that have seen shapes: what training, the service and a check say of it."""

import asyncio
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.domains import IMAGES, data_of_scenes, narrow_domains, train_briefly, without_domain
from support.local_gateway import TOKEN, WEIGHTS, LocalScorer, local_gateway, served
from support.photographs import PORTRAIT
from support.reward_helpers import PROMPT, RESPONSE, picture
from support.reward_training import CHECKPOINT, job_config

from actors.rewards import service as reward_service
from fgaif_ray.check.local import load_from_folder
from fgaif_ray.check.questions import TextToCheck
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.rewards.composition import RewardOptions
from fgaif_ray.rewards.model import RewardModel
from fgaif_ray.rewards.model_files import load_reward_model
from fgaif_ray.rewards.scoring import ItemVerdicts, ScoredBatch, make_batch, merge_verdicts, score_batches
from fgaif_ray.serving.client import RewardClient, check_item, reward_item
from fgaif_ray.serving.wire import ModelList
from fgaif_ray.shapes.render import render
from fgaif_ray.shapes.scenes import draw_scene
from fgaif_ray.vlm.backbone import load_backbone
from jobs.cli import main

PHOTOGRAPH = PORTRAIT.read_bytes()
OPTIONS = RewardOptions(weights=WEIGHTS)


def scene(index: int) -> bytes:
    """A fresh image of the embedded world."""
    buffer = io.BytesIO()
    render(draw_scene("heldout", index)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with reward models that were trained for a moment."""
    folder = tmp_path_factory.mktemp("run")
    backbone = load_backbone(CHECKPOINT, "float32")
    data = data_of_scenes(backbone, folder / "images")
    train_briefly(job_config(folder, kind="multitask", epochs=1), folder / "rewards", backbone, data)
    return folder


@pytest.fixture(scope="module")
def folders(run: Path) -> dict[str, str]:
    return {name: str(run / "rewards" / name) for name in FACT_TYPES}


@pytest.fixture(scope="module")
def model(folders: dict[str, str]) -> RewardModel:
    return load_reward_model(load_backbone(CHECKPOINT, "float32"), folders)


def verdicts(model: RewardModel, *files: bytes, segments: tuple[str, ...] = ("There is a red circle.",)) -> list[Any]:
    batch = make_batch([([file], PROMPT, list(segments)) for file in files])
    [outcomes] = score_batches(model, FACT_TYPES, [batch])
    return outcomes


# Training


def test_a_photograph_is_out_of_domain(model: RewardModel) -> None:
    [found] = verdicts(model, PHOTOGRAPH)
    assert found.domain_distance > 1


def test_fresh_images_like_those_of_training_are_not(model: RewardModel) -> None:
    assert [one.domain_distance <= 1 for one in verdicts(model, *map(scene, range(8)))] == [True] * 8


def test_types_of_one_training_share_the_measurement(model: RewardModel) -> None:
    assert len({id(domain) for domain in model.domains.values()}) == 1 and len(model.domains) == len(FACT_TYPES)


def test_the_metrics_count_false_alarms_on_images_that_were_held_out(run: Path) -> None:
    metrics = json.loads((run / "rewards" / "existence" / "metrics.json").read_text())
    assert (metrics["domain"]["images"], metrics["domain"]["held_out"]) == (IMAGES * 3 // 4, IMAGES // 4)


def test_the_card_says_the_source_and_the_false_alarms(run: Path) -> None:
    card = (run / "rewards" / "existence" / "README.md").read_text()
    assert f"{IMAGES * 3 // 4} images (shapes)" in card and f"of\n{IMAGES // 4} held-out images" in card


# Scoring


def test_a_response_without_segments_has_no_distance(model: RewardModel) -> None:
    [found] = verdicts(model, PHOTOGRAPH, segments=())
    assert found.domain_distance is None


def test_reward_models_of_an_earlier_release_do_not_know(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "rewards" / "relation", tmp_path / "relation")
    without_domain(tmp_path / "relation")
    older = load_reward_model(load_backbone(CHECKPOINT, "float32"), {"relation": str(tmp_path / "relation")})
    [[found]] = score_batches(older, ["relation"], [make_batch([([PHOTOGRAPH], PROMPT, ["A circle."])])])
    assert found.domain_distance is None


@pytest.mark.parametrize(
    ("distances", "expected"), [((None, 0.5, 2.0), 2.0), ((0.5, None, None), 0.5), ((None, None, None), None)]
)
def test_the_reward_model_that_is_furthest_decides(distances: tuple[float | None, ...], expected: float | None) -> None:
    parts = [ScoredBatch({}, [ItemVerdicts({}, domain_distance=distance)]) for distance in distances]
    assert merge_verdicts(parts).outcomes == [ItemVerdicts({}, domain_distance=expected)]


# The service


@pytest.fixture(scope="module")
def models(run: Path, folders: dict[str, str]) -> ModelList:
    """What `GET /v1/models` answers, of the reward models of the run."""
    application = reward_service.build_application(job_config(run), folders, "http://127.0.0.1:1")
    found: ModelList = application._bound_deployment.init_args[0].models
    return found


def test_every_reward_model_is_listed_with_what_it_was_trained_on(models: ModelList) -> None:
    assert [(card.trained_on.source, card.trained_on.images) for card in models.models if card.trained_on] == [
        ("shapes", IMAGES * 3 // 4)
    ] * len(FACT_TYPES)


def test_every_reward_model_is_listed_with_its_false_alarms(models: ModelList) -> None:
    assert [card.domain.held_out for card in models.models if card.domain] == [IMAGES // 4] * len(FACT_TYPES)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> LocalScorer:
    scorer = LocalScorer(tmp_path_factory.mktemp("rewards"))
    scorer.model.domains = narrow_domains(scorer.model)
    return scorer


def test_rewards_over_http_are_marked(scorer: LocalScorer) -> None:
    with served(local_gateway(scorer, OPTIONS)) as url, RewardClient(url, token=TOKEN) as client:
        [scored] = client.score([reward_item(picture(), PROMPT, RESPONSE)])
    assert scored.out_of_domain is True and scored.domain_distance is not None and scored.domain_distance > 1


def test_verdicts_through_the_handle_are_marked(scorer: LocalScorer) -> None:
    item = {"image": picture(), "prompt": PROMPT, "response": RESPONSE}
    [found] = asyncio.run(local_gateway(scorer, OPTIONS).score_responses([item]))
    assert found is not None and found.out_of_domain is True


def test_checks_over_http_are_marked(scorer: LocalScorer) -> None:
    with served(local_gateway(scorer, OPTIONS)) as url, RewardClient(url, token=TOKEN) as client:
        [checked] = client.check([check_item(picture(), RESPONSE)])
    assert checked.out_of_domain is True


def test_a_service_that_does_not_know_leaves_the_fields_out(tmp_path: Path) -> None:
    with served(local_gateway(LocalScorer(tmp_path), OPTIONS)) as url, RewardClient(url, token=TOKEN) as client:
        [scored] = client.score([reward_item(picture(), PROMPT, RESPONSE)])
    assert scored.out_of_domain is None
    assert not {"out_of_domain", "domain_distance"} & set(json.loads(scored.model_dump_json()))


# Checks


def test_a_check_in_this_process_marks_the_photograph_alone(run: Path) -> None:
    checker = load_from_folder(str(run))
    found = checker.check_each([TextToCheck((file,), RESPONSE) for file in (PHOTOGRAPH, scene(3))])
    assert [one.out_of_domain for one in found] == [True, False]


def test_a_check_says_what_the_reward_models_were_trained_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("check", [str(PORTRAIT), "A hat.", "--rewards", str(run)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("The image is unlike those that the reward models were trained on (")
    assert f"trained on {IMAGES * 3 // 4} images (shapes)" in shown

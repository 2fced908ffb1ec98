"""Prompts about several images: every worker shows its engine all of them, in order, and says how many there can be."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from support.label_helpers import ANNOTATOR, write_responses
from support.recording_engine import RecordingEngine, recorded_config

from actors.alignment.rollout import PolicyVersion, RefusedRollout, Rollout, RolloutRequest, RolloutWorker
from actors.engine.block_counts import BlockCounts
from actors.engine.blocks import seal
from actors.evaluation.generator import Generator
from actors.labelling.calibration import FACTS_SCHEMA, CalibrationVerifier
from actors.labelling.extracted import EXTRACTED_SCHEMA
from actors.labelling.second_verifier import SecondVerifier
from actors.labelling.verification import prepare
from actors.labelling.verifier import Verifier
from actors.sampling.rows import REJECTED_FOLDER, TASK_SCHEMA
from actors.sampling.sampler import Sampler
from fgaif_ray import storage
from fgaif_ray.audit.control_items.asked import CONTROL_ITEMS_FOLDER, AskedControlItem
from fgaif_ray.config import Config
from fgaif_ray.evaluation.rows import QUESTIONS_SCHEMA
from fgaif_ray.images import load_image
from fgaif_ray.records import Feedback, Response, images_digest
from fgaif_ray.sources import prepare_images
from fgaif_ray.vlm.front_end import load_front_end

pytestmark = pytest.mark.vllm
PROMPT = "Compare <image> with <image>."


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> RecordingEngine:
    recording = RecordingEngine()

    def start(*_arguments: Any, images: int = 1, **_options: Any) -> RecordingEngine:
        assert images == 2
        return recording

    for module in ("sampling.sampler", "evaluation.generator", "labelling.fact_checker", "alignment.rollout"):
        monkeypatch.setattr(f"actors.{module}.start_engine", start)
    return recording


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A run of a few scenes, two of which a prompt may be about."""
    return recorded_config(tmp_path / "run", images_per_prompt=2)


@pytest.fixture
def scenes(config: Config) -> list[str]:
    return [image for (image,) in prepare_images(config).sample[:3]]


def sealed(schema: pa.Schema, *rows: dict[str, Any]) -> pa.Table:
    return seal(pa.Table.from_pylist(list(rows), schema=schema))


def assert_shown(engine: RecordingEngine, images: Sequence[str]) -> None:
    """One prompt was asked, about these images."""
    [(_, shown)] = engine.prompts
    assert [image.tobytes() for image in shown] == [load_image(path).tobytes() for path in images]


def assert_asked_about(engine: RecordingEngine, images: str) -> None:
    """The questions speak of one image, or of several."""
    front_end = load_front_end(str(ANNOTATOR))
    assert engine.prompts and all(f"according to the {images}?" in front_end.decode(ids) for ids, _ in engine.prompts)


def task(images: Sequence[str], prompt: str) -> dict[str, Any]:
    return {"image": images[0], "more_images": list(images[1:]), "prompt": prompt}


def test_sampling_shows_all_images(config: Config, engine: RecordingEngine, scenes: list[str], tmp_path: Path) -> None:
    Sampler(config, str(tmp_path / "partial"))(sealed(TASK_SCHEMA, task(scenes[:2], PROMPT)))
    [row] = map(Response.from_row, storage.read_rows(str(tmp_path / "partial")))
    assert_shown(engine, scenes[:2])
    assert (row.images, row.prompt) == (tuple(scenes[:2]), PROMPT)


def test_a_row_that_cannot_be_asked_is_rejected_alone(
    config: Config, engine: RecordingEngine, scenes: list[str], tmp_path: Path
) -> None:
    tasks = [task(scenes[:1], PROMPT), task(scenes[:2], "Compare."), task(scenes, "Compare.")]
    counts = Sampler(config, str(tmp_path / "partial"))(sealed(TASK_SCHEMA, *tasks))
    reasons = [row["reason"] for row in storage.read_rows(str(tmp_path / "partial" / REJECTED_FOLDER))]
    assert BlockCounts.from_row(counts.to_pylist()[0]) == BlockCounts(done=1, rejected=2)
    assert len(engine.prompts) == 1
    assert "2 places for an image" in reasons[0] and "1 image" in reasons[0]
    assert reasons[1] == "there are 3 images, more than data.images_per_prompt (2) allows"


def test_evaluation_shows_all_images(
    config: Config, engine: RecordingEngine, scenes: list[str], tmp_path: Path
) -> None:
    question = {"id": "1", "which": "before", "task": "sampled", "temperature": 0.0, "max_tokens": 4, "seed": 1}
    (tmp_path / "adapter").mkdir()
    questions = (task(scenes[:2], PROMPT) | question, task(scenes, PROMPT) | question | {"id": "2"})
    generator = Generator(config, str(tmp_path / "adapter"), 4, str(tmp_path / "partial"))
    counts = generator(sealed(QUESTIONS_SCHEMA, *questions))
    assert BlockCounts.from_row(counts.to_pylist()[0]) == BlockCounts(done=1, rejected=1)
    assert_shown(engine, scenes[:2])


def test_a_rollout_shows_all_images_and_refuses_alone_what_cannot_be_read(
    config: Config, engine: RecordingEngine, scenes: list[str], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    worker = RolloutWorker(config, ())
    worker._shared = SimpleNamespace(generate=lambda prompts, parameters, _: engine.generate(prompts, parameters))
    requests = [RolloutRequest((1,), images, 0) for images in ((scenes[0], str(broken)), tuple(scenes[:2]))]
    refused, answered = worker.generate(requests, PolicyVersion(0, "v0"))
    assert isinstance(refused, RefusedRollout) and "broken.png is not a usable image" in refused.reason
    assert isinstance(answered, Rollout)
    assert_shown(engine, scenes[:2])


def extracted(config: Config, images: Sequence[str]) -> dict[str, Any]:
    """A response about images with one fact."""
    row = write_responses(config)[0]
    return row | {
        "image": images[0],
        "more_images": list(images[1:]),
        "image_sha256": images_digest([f"{number:064x}" for number in range(len(images))]),
        "spans": [(0, len(row["response"]))],
        "facts": json.dumps([[{"type": "existence", "text": "There is a circle."}]]),
        "reason": None,
        "unavailable": None,
    }


def test_both_verifiers_ask_about_all_images(
    config: Config, engine: RecordingEngine, scenes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verification = prepare(config, str(tmp_path / "partial"), str(tmp_path / "rejected"))
    Verifier(verification)(sealed(EXTRACTED_SCHEMA, extracted(config, scenes[:2])))
    del engine.prompts[1:]  # control items
    assert_shown(engine, scenes[:2])
    assert_asked_about(engine, "images")
    own, engine.prompts = engine.prompts, []
    [feedback] = map(Feedback.from_row, storage.read_rows(str(tmp_path / "partial")))
    assert feedback.response.images == tuple(scenes[:2])
    monkeypatch.setattr("ray.get", lambda parts: parts)
    parts: Any = storage.list_parts(str(tmp_path / "partial"))
    SecondVerifier(verification, parts)(pa.table({"id": [0]}))
    assert [ids for ids, _ in engine.prompts] == [ids for ids, _ in own]


def test_a_fact_about_one_image_is_asked_so(
    config: Config, engine: RecordingEngine, scenes: list[str], tmp_path: Path
) -> None:
    verification = prepare(config, str(tmp_path / "partial"), str(tmp_path / "rejected"))
    Verifier(verification)(sealed(EXTRACTED_SCHEMA, extracted(config, scenes[:1])))
    assert_asked_about(engine, "image")


def test_control_items_about_several_images_show_all_of_them(
    config: Config, engine: RecordingEngine, scenes: list[str], tmp_path: Path
) -> None:
    (tmp_path / "own.jsonl").write_text(json.dumps({"image": scenes[1:3], "fact": "Both show a bus."}))
    chosen = config.label.control_items.model_copy(update={"path": str(tmp_path / "own.jsonl")})
    config = config.model_copy(update={"label": config.label.model_copy(update={"control_items": chosen})})
    verification = prepare(config, str(tmp_path / "p"), str(tmp_path / "rejected"))
    pool = verification.control_items
    own = tuple(item for item in pool.control_items if item.kind == "given")
    verification = replace(verification, control_items=replace(pool, control_items=own))
    Verifier(verification)(sealed(EXTRACTED_SCHEMA, extracted(config, scenes[:1])))
    shown = [[image.tobytes() for image in images] for _, images in engine.prompts]
    assert [load_image(path).tobytes() for path in scenes[1:3]] in shown
    [asked] = map(AskedControlItem.from_row, storage.read_rows(str(tmp_path / "p" / CONTROL_ITEMS_FOLDER)))
    assert asked.images == tuple(scenes[1:3]) and asked.p_consistent is not None


def test_thresholds_are_calibrated_on_all_images(config: Config, engine: RecordingEngine, scenes: list[str]) -> None:
    verifier = CalibrationVerifier(config.label.verifier, config.data)
    fact = {"number": 0, "image": scenes[0], "fact": "There is a circle."}
    verifier(sealed(FACTS_SCHEMA, fact | {"more_images": scenes[1:2]}, fact | {"number": 1}))
    assert [len(shown) for _, shown in engine.prompts] == [2, 1]

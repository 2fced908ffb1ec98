"""``data.max_pixels`` reaches every engine: its worker shows it images that are scaled down."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.label_helpers import write_responses
from support.recording_engine import RecordingEngine, recorded_config

from actors.engine.blocks import seal
from actors.evaluation.generator import Generator
from actors.labelling.calibration import FACTS_SCHEMA, CalibrationVerifier
from actors.labelling.extracted import EXTRACTED_SCHEMA
from actors.labelling.second_verifier import SecondVerifier
from actors.labelling.verification import prepare
from actors.labelling.verifier import Verifier
from actors.sampling.rows import TASK_SCHEMA
from actors.sampling.sampler import Sampler
from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.evaluation.rows import QUESTIONS_SCHEMA
from fgaif_ray.sources import prepare_images

pytestmark = pytest.mark.vllm
REDUCED = (30, 30)
"""Scenes have 60 x 60 pixels."""


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> RecordingEngine:
    recording = RecordingEngine()
    for module in ("sampling.sampler", "evaluation.generator", "labelling.fact_checker"):
        monkeypatch.setattr(f"actors.{module}.start_engine", lambda *_arguments, **_options: recording)
    return recording


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A run of a few scenes with a budget of 30 x 30 pixels, and a second verifier."""
    return recorded_config(tmp_path / "run", max_pixels=900)


def sealed(row: dict[str, Any], schema: pa.Schema) -> pa.Table:
    return seal(pa.Table.from_pylist([row], schema=schema))


def extracted(config: Config) -> dict[str, Any]:
    """A response with one fact."""
    row = write_responses(config)[0]
    fact = {"type": "existence", "text": "There is a circle."}
    return row | {
        "spans": [(0, len(row["response"]))],
        "facts": json.dumps([[fact]]),
        "reason": None,
        "unavailable": None,
    }


def test_sampling_shows_reduced_images(config: Config, engine: RecordingEngine, tmp_path: Path) -> None:
    [(image,), *_] = prepare_images(config).sample
    Sampler(config, str(tmp_path / "partial"))(sealed({"image": image, "prompt": "Describe."}, TASK_SCHEMA))
    assert engine.sizes == [REDUCED]


def test_evaluation_shows_reduced_images(config: Config, engine: RecordingEngine, tmp_path: Path) -> None:
    [(image,)] = prepare_images(config).evaluate
    question = {"id": "1", "which": "before", "task": "sampled", "image": image, "prompt": "Describe."}
    question |= {"temperature": 0.0, "max_tokens": 4, "seed": 1}
    (tmp_path / "adapter").mkdir()
    Generator(config, str(tmp_path / "adapter"), 4, str(tmp_path / "partial"))(sealed(question, QUESTIONS_SCHEMA))
    assert engine.sizes == [REDUCED]


def test_both_verifiers_see_reduced_images(
    config: Config, engine: RecordingEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verification = prepare(config, str(tmp_path / "partial"), str(tmp_path / "rejected"))
    Verifier(verification)(sealed(extracted(config), EXTRACTED_SCHEMA))
    own = len(engine.sizes)
    assert set(engine.sizes) == {REDUCED}
    monkeypatch.setattr("ray.get", lambda parts: parts)
    parts: Any = storage.list_parts(str(tmp_path / "partial"))
    SecondVerifier(verification, parts)(pa.table({"id": [0]}))
    assert engine.sizes[own:] == [REDUCED]


def test_control_items_show_reduced_images(config: Config, engine: RecordingEngine, tmp_path: Path) -> None:
    control_items = config.label.control_items.model_copy(update={"per_block": 4})
    config = config.model_copy(update={"label": config.label.model_copy(update={"control_items": control_items})})
    verification = prepare(config, str(tmp_path / "partial"), str(tmp_path / "rejected"))
    Verifier(verification)(sealed(extracted(config), EXTRACTED_SCHEMA))
    assert len(engine.sizes) > 1 and set(engine.sizes) == {REDUCED}


def test_thresholds_are_calibrated_on_reduced_images(config: Config, engine: RecordingEngine) -> None:
    [(image,)] = prepare_images(config).evaluate
    verifier = CalibrationVerifier(config.label.verifier, config.data)
    verifier(sealed({"number": 0, "image": image, "fact": "There is a circle."}, FACTS_SCHEMA))
    assert engine.sizes == [REDUCED]

"""A worker whose engine reads other prompts than the processor makes writes nothing and says why the job must stop."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.label_helpers import ANNOTATOR, write_responses
from support.recording_engine import RecordingEngine, recorded_config

from actors.engine.block_counts import BlockCounts
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
FACT = "There is a circle."
PROMPT = "Describe."


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> RecordingEngine:
    recording = RecordingEngine()
    recording.blind = True
    for module in ("sampling.sampler", "evaluation.generator", "labelling.fact_checker"):
        monkeypatch.setattr(f"actors.{module}.start_engine", lambda *_arguments, **_options: recording)
    return recording


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return recorded_config(tmp_path / "run")


def sealed(row: dict[str, Any], schema: pa.Schema) -> pa.Table:
    return seal(pa.Table.from_pylist([row], schema=schema))


def assert_told(fatal: str | None, row: str) -> None:
    assert fatal is not None
    assert fatal.startswith(f"{ANNOTATOR}: ") and row in fatal and f"`fgaif check-model {ANNOTATOR}`" in fatal


def fatal_of(counts: pa.Table) -> str | None:
    [row] = map(BlockCounts.from_row, counts.to_pylist())
    assert (row.done, row.rejected) == (0, 0)
    return row.fatal


def extracted(config: Config) -> dict[str, Any]:
    """A response with one fact."""
    row = write_responses(config)[0]
    facts = json.dumps([[{"type": "existence", "text": FACT}]])
    return row | {"spans": [(0, len(row["response"]))], "facts": facts, "reason": None, "unavailable": None}


@pytest.mark.usefixtures("engine")
def test_sampling_stops(config: Config, tmp_path: Path) -> None:
    [(image,), *_] = prepare_images(config).sample
    partial = tmp_path / "partial"
    sampler = Sampler(config, str(partial))
    row = sealed({"image": image, "prompt": PROMPT}, TASK_SCHEMA)
    assert_told(fatal_of(sampler(row)), f"{PROMPT!r} about {image}")
    assert fatal_of(sampler(row)) is not None  # again, whatever has been compared
    assert not partial.exists()


@pytest.mark.usefixtures("engine")
def test_evaluation_stops(config: Config, tmp_path: Path) -> None:
    [(image,)] = prepare_images(config).evaluate
    question = {"id": "1", "which": "before", "task": "sampled", "image": image, "prompt": PROMPT}
    question |= {"temperature": 0.0, "max_tokens": 4, "seed": 1}
    (tmp_path / "adapter").mkdir()
    generator = Generator(config, str(tmp_path / "adapter"), 4, str(tmp_path / "partial"))
    assert_told(fatal_of(generator(sealed(question, QUESTIONS_SCHEMA))), f"{PROMPT!r} about {image}")
    assert not (tmp_path / "partial").exists()


def test_both_verifiers_stop(
    config: Config, engine: RecordingEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verification = prepare(config, str(tmp_path / "partial"), str(tmp_path / "rejected"))
    row = extracted(config)
    verify: Callable[[], pa.Table] = lambda: Verifier(verification)(sealed(row, EXTRACTED_SCHEMA))  # noqa: E731
    told = f"the fact {FACT!r} about {row['image']}"
    assert_told(fatal_of(verify()), told)
    assert not (tmp_path / "partial").exists()
    engine.blind = False
    assert fatal_of_done(verify()) is None
    engine.blind = True
    monkeypatch.setattr("ray.get", lambda parts: parts)
    parts: Any = storage.list_parts(str(tmp_path / "partial"))
    before = list(storage.read_rows(str(tmp_path / "partial")))
    assert_told(fatal_of(SecondVerifier(verification, parts)(pa.table({"id": [0]}))), told)
    assert list(storage.read_rows(str(tmp_path / "partial"))) == before


def fatal_of_done(counts: pa.Table) -> str | None:
    [row] = map(BlockCounts.from_row, counts.to_pylist())
    assert row.done == 1
    return row.fatal


@pytest.mark.usefixtures("engine")
def test_calibration_stops(config: Config) -> None:
    [(image,)] = prepare_images(config).evaluate
    verifier = CalibrationVerifier(config.label.verifier, config.data)
    [found] = verifier(sealed({"number": 0, "image": image, "fact": FACT}, FACTS_SCHEMA)).to_pylist()
    assert_told(found["fatal"], f"the fact {FACT!r} about {image}")

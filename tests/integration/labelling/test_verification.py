"""Verification on real engines and real Ray Data: calibration, control items, a second verifier, the prefix cache."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.fake_openai import FakeOpenAI
from support.label_helpers import ANNOTATOR, BLOCK, ENGINE, KEY_VARIABLE, Rules, make_config, write_responses

from actors.labelling.extracted import ExtractedResponse, seal_extracted
from actors.labelling.thresholds import find_thresholds
from actors.labelling.verifier import Verification, Verifier
from fgaif_ray import storage
from fgaif_ray.audit.control_items import load_control_items
from fgaif_ray.config import CalibrationConfig, Config, ControlItemConfig, EngineConfig, VerifierConfig
from fgaif_ray.errors import UserError
from fgaif_ray.feedback.label_sources import feedback_stages
from fgaif_ray.records import FACT_TYPES, Fact, Response
from fgaif_ray.segments import Span
from fgaif_ray.shapes import tiny_llava
from fgaif_ray.shapes.control_items import scene_control_items
from fgaif_ray.sources import load_truth
from jobs import label

PATCH = 4
PER_BLOCK = 2
SMALL_BLOCKS = ENGINE | {"max_model_len": 512, "block_size": 32}


def random_verifier(folder: Path) -> str:
    """A LLaVA that was never trained, with as many image tokens as fill several cache blocks."""
    from transformers import AutoTokenizer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_llava, "CELL_SIZE", PATCH)
        tokenizer = AutoTokenizer.from_pretrained(ANNOTATOR)
        tiny_llava.save_checkpoint(tiny_llava.build_model(tokenizer), tiny_llava.build_processor(tokenizer), folder)
    return str(folder)


def change(config: Config, **label_settings: Any) -> Config:
    return config.model_copy(update={"label": config.label.model_copy(update=label_settings)})


def write_truth(config: Config, path: Path) -> str:
    """Facts about the scenes of a run, right and wrong ones of each type."""
    truth = load_truth(config)
    assert truth is not None
    lines = [
        {"image": os.path.abspath(str(fact.image)), "fact": fact.text, "type": fact.type, "consistent": fact.consistent}
        for fact in scene_control_items(truth, seed=1)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


class Verified:
    """A run with a calibrated verifier and a second one whose disagreements are masked; then the same unmasked."""

    def __init__(self, folder: Path, url: str) -> None:
        config = make_config(folder / "run", url)
        write_responses(config)
        facts = write_truth(config, folder / "facts.jsonl")
        first = config.label.verifier.model_copy(update={"calibration": CalibrationConfig(path=facts)})
        second = VerifierConfig(model=random_verifier(folder / "random"), engine=EngineConfig(**SMALL_BLOCKS))
        self.config = change(
            config,
            verifier=first,
            second_verifier=second,
            disagreement="mask",
            control_items=ControlItemConfig(per_block=PER_BLOCK),
        )
        label.run(self.config)
        self.rows, self.metrics = self.read()

    def read(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        folder = storage.join(self.config.run.dir, "feedback")
        return list(storage.read_rows(folder)), storage.read_json(storage.join(folder, "metrics.json"))

    @property
    def segments(self) -> list[dict[str, Any]]:
        return [segment for row in self.rows for segment in row["segments"]]

    @property
    def facts(self) -> list[dict[str, Any]]:
        return [fact for segment in self.segments for fact in segment["facts"]]

    def stored(self, *names: str) -> list[dict[str, Any]]:
        return list(storage.read_rows(storage.join(self.config.run.dir, *names)))


@pytest.fixture(scope="module")
def endpoint() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(Rules()) as server:
        yield server


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory, endpoint: FakeOpenAI, ray_cluster: Any) -> Verified:
    os.environ[KEY_VARIABLE] = "key"
    try:
        return Verified(tmp_path_factory.mktemp("verified"), endpoint.url)
    finally:
        del os.environ[KEY_VARIABLE]


@pytest.mark.ray
@pytest.mark.vllm
class TestVerification:
    def test_verdicts_follow_the_calibrated_thresholds(self, verified: Verified) -> None:
        found = storage.read_json(storage.join(verified.config.run.dir, "calibration", "calibration.json"))
        assert verified.metrics["thresholds"] == found["thresholds"]
        for fact in verified.facts:
            assert fact["consistent"] == (fact["p_consistent"] >= found["thresholds"][fact["type"]])

    def test_a_fact_gets_the_same_probability_in_calibration_and_labelling(self, verified: Verified) -> None:
        known = {(row["image"], row["fact"]): row["p_consistent"] for row in verified.stored("calibration")}
        pairs = [
            (known[key], fact["p_consistent"])
            for row in verified.rows
            for segment in row["segments"]
            for fact in segment["facts"]
            if (key := (os.path.abspath(row["image"]), fact["text"])) in known
        ]
        assert pairs
        assert [first for first, _ in pairs] == pytest.approx([second for _, second in pairs], abs=1e-3)

    def test_each_block_is_asked_its_control_items(self, verified: Verified) -> None:
        asked = verified.stored("feedback", "canaries")
        blocks = len(verified.stored("feedback", "checks")) // 2
        assert Counter(row["consistent"] for row in asked) == {False: PER_BLOCK * blocks, True: PER_BLOCK * blocks}
        assert verified.metrics["canaries"]["false_asked"] == PER_BLOCK * blocks
        assert all(row["p_consistent"] is not None for row in asked)

    def test_control_items_are_in_no_row(self, verified: Verified) -> None:
        ordered = {row["fact"] for row in verified.stored("feedback", "canaries") if row["injected"]}
        assert ordered
        assert not ordered & {fact["text"] for fact in verified.facts}

    def test_both_verifiers_judge_every_fact(self, verified: Verified) -> None:
        assert all(fact["second_p_consistent"] is not None for fact in verified.facts)
        assert len({round(fact["second_p_consistent"], 6) for fact in verified.facts}) > 10

    def test_disagreements_are_those_of_the_rows(self, verified: Verified) -> None:
        differing = Counter(fact["type"] for fact in verified.facts if fact["consistent"] != fact["second_consistent"])
        assert differing.total() > 0
        counted = verified.metrics["second_verifier"]
        assert {name: counted[name]["disagreements"] for name in FACT_TYPES} == {
            name: differing[name] for name in FACT_TYPES
        }

    def test_labels_that_hang_on_a_disagreement_are_masked(self, verified: Verified) -> None:
        masked = sum(segment["labels"][name] is None for segment in verified.segments for name in FACT_TYPES)
        assert masked == sum(verified.metrics["labels_masked"].values()) > 0

    def test_an_images_prefix_is_computed_once(self, verified: Verified) -> None:
        assert verified.metrics["prefix_cache"]["prompt_tokens"] > 0
        assert verified.metrics["second_prefix_cache"]["hit_rate"] > 0.5

    def test_every_row_says_who_verified(self, verified: Verified) -> None:
        (annotator,) = {row["annotator"] for row in verified.rows}
        assert json.loads(annotator)["second_verifier"]["disagreement"] == "mask"

    def test_an_image_that_is_gone_stops_the_calibration_in_a_sentence(
        self, verified: Verified, tmp_path: Path
    ) -> None:
        fact = {"image": "gone.png", "fact": "There is a star.", "type": "existence", "consistent": True}
        path = tmp_path / "facts.jsonl"
        path.write_text(json.dumps(fact) + "\n" + json.dumps(fact | {"consistent": False}) + "\n")
        config = verified.config
        verifier = config.label.verifier.model_copy(update={"calibration": CalibrationConfig(path=str(path))})
        config = change(config, verifier=verifier).model_copy(
            update={"run": config.run.model_copy(update={"dir": str(tmp_path)})}
        )
        with pytest.raises(UserError, match=r"gone\.png"):
            find_thresholds(config)
        assert storage.read_manifest(str(tmp_path), "calibration") is None

    def test_unmasking_asks_no_verifier(self, verified: Verified) -> None:
        """Stays last: it publishes the run again, without engines and with an endpoint that is not asked."""
        before = [fact["second_p_consistent"] for fact in verified.facts]
        label.run(change(verified.config, disagreement="report"))
        verified.rows, verified.metrics = verified.read()
        assert [fact["second_p_consistent"] for fact in verified.facts] == before
        assert sum(verified.metrics["labels_masked"].values()) == 0


class Worker:
    """A verifier as the job has it, an actor with an engine, and what it is given."""

    def __init__(self, folder: Path) -> None:
        import ray

        config = make_config(folder, "http://127.0.0.1:9/v1", images=BLOCK)
        self.responses = list(map(Response.from_row, write_responses(config)))
        self.stage, self.rejected_stage = feedback_stages(config)
        verification = Verification(
            config.label,
            self.stage.partial,
            self.rejected_stage.partial,
            dict.fromkeys(FACT_TYPES, 0.5),
            None,
            load_control_items(ControlItemConfig(per_block=0), FACT_TYPES),
            config.run.types,
        )
        self._actor = ray.remote(Verifier).remote(verification)

    def verify(self, rows: list[ExtractedResponse]) -> dict[str, Any]:
        import ray

        [counts] = ray.get(self._actor.__call__.remote(seal_extracted(rows))).to_pylist()
        return counts

    def stop(self) -> None:
        import ray

        ray.kill(self._actor)


@pytest.fixture(scope="class")
def worker(tmp_path_factory: pytest.TempPathFactory, ray_cluster: Any) -> Iterator[Worker]:
    started = Worker(tmp_path_factory.mktemp("blocks") / "run")
    yield started
    started.stop()


@pytest.mark.ray
@pytest.mark.vllm
class TestRepeatedBlock:
    def test_a_response_that_the_endpoint_failed_on_is_neither_labelled_nor_rejected(self, worker: Worker) -> None:
        """Stays first: nothing has been written yet."""
        row = ExtractedResponse(response=worker.responses[2], spans=(), facts=None, unavailable="server: down")
        counts = worker.verify([row])
        assert (counts["done"], counts["rejected"], counts["unavailable"]) == (0, 0, ["server: down"])
        written = [list(storage.read_rows(place.partial)) for place in (worker.stage, worker.rejected_stage)]
        assert written == [[], []]

    def test_a_label_is_kept_when_the_block_is_done_again_and_a_call_times_out(self, worker: Worker) -> None:
        rows = [
            ExtractedResponse(
                response=response,
                spans=(Span(0, len(response.text)),),
                facts=((Fact("existence", "There is a circle."),),),
            )
            for response in worker.responses[:2]
        ]
        rejected = [rows[0], replace(rows[1], facts=None, reason="timeout: no answer")]
        failed = [rows[0], replace(rows[1], facts=None, unavailable="server: the endpoint failed")]
        assert [worker.verify(given)["done"] for given in (rows, rejected, failed, rows)] == [2, 2, 2, 2]
        assert len(list(storage.read_rows(worker.stage.partial))) == 2
        assert storage.list_parts(worker.rejected_stage.partial) == []

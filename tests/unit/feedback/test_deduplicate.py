"""Each response ends in one place, and is labelled again without being asked again."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgaif_ray import storage
from fgaif_ray.audit.control_items.asked import CONTROL_ITEMS_SCHEMA
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.feedback.deduplicate import deduplicate
from fgaif_ray.feedback.label_sources import feedback_stages
from fgaif_ray.records import FACT_TYPES, REJECTED_SCHEMA, RESPONSES_SCHEMA, feedback_schema
from jobs import label


def response(sample_id: str) -> dict[str, Any]:
    return {
        "sample_id": sample_id,
        "image": f"{sample_id}.png",
        "image_sha256": sample_id,
        "prompt": "What is there?",
        "response": "A red dog.",
        "token_ids": None,
        "finish_reason": "stop",
        "model": "policy",
    }


def labelled(sample_id: str, p: float = 0.75) -> dict[str, Any]:
    fact = {"type": "existence", "text": "There is a dog.", "p_consistent": p, "consistent": p >= 0.5}
    labels = {"existence": 1 if p >= 0.5 else 2, "attribute": 0, "relation": 0}
    segment = {"start": 0, "end": 10, "text": "A red dog.", "facts": [fact], "labels": labels, "ai_labels": labels}
    segment["label_sources"] = dict.fromkeys(FACT_TYPES, "ai")
    return response(sample_id) | {"segments": [segment], "annotator": "{}"}


def rejected(sample_id: str) -> dict[str, Any]:
    return response(sample_id) | {"reason": "timeout: no answer"}


def make_config(run: Path, **label_settings: Any) -> Config:
    extractor = {"base_url": "http://127.0.0.1:9/v1", "model": "m"}
    return Config.model_validate(
        {
            "run": {"dir": str(run)},
            "data": {"path": "images"},
            "policy": {"model": "policy"},
            "label": {"extractor": extractor, "verifier": {"model": "v"}} | label_settings,
            "rewards": {"backbone": "b"},
        }
    )


def begin(config: Config, ids: str) -> tuple[storage.Stage, storage.Stage]:
    """Responses of a run, and its stages as an attempt at labelling leaves them."""
    stage = storage.Stage(config.run.dir, "responses", "f")
    stage.begin()
    storage.write_part(stage.partial, [response(name) for name in ids], RESPONSES_SCHEMA)
    stage.publish({"rows": len(ids)})
    both = feedback_stages(config)
    for stage in both:
        stage.begin()
    return both


def ids_in(folder: str) -> list[str]:
    return sorted(row["sample_id"] for row in storage.read_rows(folder))


def published(config: Config) -> tuple[list[str], list[str]]:
    return tuple(ids_in(storage.join(config.run.dir, name)) for name in ("feedback", "feedback_rejected"))


class TestRepeatedBlocks:
    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    def test_a_response_labelled_in_one_attempt_and_rejected_in_another_is_labelled(
        self, tmp_path: Path, order: tuple[int, int]
    ) -> None:
        """A call that timed out in one of two runs of a block leaves the response in both folders."""
        config = make_config(tmp_path)
        stage, rejected_stage = begin(config, "abc")
        attempts = [
            (rejected_stage.partial, [rejected("b"), rejected("c")], REJECTED_SCHEMA),
            (stage.partial, [labelled("a"), labelled("b")], feedback_schema(FACT_TYPES)),
        ]
        for index in order:
            storage.write_part(*attempts[index], "block")
        label.run(config)
        assert published(config) == (["a", "b"], ["c"])

    def test_a_response_labelled_in_two_blocks_is_there_once(self, tmp_path: Path) -> None:
        config = make_config(tmp_path)
        stage, _ = begin(config, "abc")
        storage.write_part(stage.partial, [labelled("a"), labelled("b")], feedback_schema(FACT_TYPES), "1")
        storage.write_part(stage.partial, [labelled("b", 0.1), labelled("c")], feedback_schema(FACT_TYPES), "2")
        label.run(config)
        assert published(config) == (["a", "b", "c"], [])
        (kept,) = [
            row for row in storage.read_rows(storage.join(config.run.dir, "feedback")) if row["sample_id"] == "b"
        ]
        assert kept["segments"][0]["facts"][0]["p_consistent"] == 0.75

    def test_figures_count_each_response_once(self, tmp_path: Path) -> None:
        config = make_config(tmp_path)
        stage, rejected_stage = begin(config, "ab")
        storage.write_part(stage.partial, [labelled("a"), labelled("b")], feedback_schema(FACT_TYPES), "1")
        storage.write_part(rejected_stage.partial, [rejected("b")], REJECTED_SCHEMA, "1")
        label.run(config)
        metrics = storage.read_json(storage.join(config.run.dir, "feedback", "metrics.json"))
        assert (metrics["rows"], metrics["rejected"]) == (2, {"total": 0, "by_reason": {}})


@given(st.lists(st.tuples(st.booleans(), st.lists(st.sampled_from("abcdef"), unique=True, min_size=1)), max_size=6))
@settings(deadline=None, max_examples=40)
def test_every_identity_is_left_once_and_labels_win(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[bool, list[str]]]
) -> None:
    folder = tmp_path_factory.mktemp("settle")
    first, second = str(folder / "labelled"), str(folder / "rejected")
    for number, (is_labelled, ids) in enumerate(parts):
        if is_labelled:
            storage.write_part(first, [labelled(name) for name in ids], feedback_schema(FACT_TYPES), str(number))
        else:
            storage.write_part(second, [rejected(name) for name in ids], REJECTED_SCHEMA, str(number))
    removed = deduplicate([first, second])
    with_label = {name for is_labelled, ids in parts if is_labelled for name in ids}
    everything = {name for _, ids in parts for name in ids}
    assert ids_in(first) == sorted(with_label)
    assert ids_in(second) == sorted(everything - with_label)
    assert removed == sum(len(ids) for _, ids in parts) - len(everything)
    assert deduplicate([first, second]) == 0


class TestLabelledAgain:
    def run_once(self, tmp_path: Path) -> Config:
        config = make_config(tmp_path)
        stage, rejected_stage = begin(config, "abc")
        storage.write_part(stage.partial, [labelled("a", 0.6), labelled("b", 0.9)], feedback_schema(FACT_TYPES), "1")
        storage.write_part(rejected_stage.partial, [rejected("c")], REJECTED_SCHEMA, "1")
        item = {"image": "a", "fact": "f", "kind": "text", "consistent": False, "injected": False}
        control_items = storage.join(stage.partial, "canaries")
        storage.write_part(control_items, [item | {"p_consistent": 0.7}], CONTROL_ITEMS_SCHEMA, "1")
        label.run(config)
        return config

    def labels(self, config: Config) -> dict[str, int]:
        rows = storage.read_rows(storage.join(config.run.dir, "feedback"))
        return {row["sample_id"]: row["segments"][0]["labels"]["existence"] for row in rows}

    def test_another_threshold_asks_nothing(self, tmp_path: Path) -> None:
        """The endpoint and the verifier of this run do not exist: asking anything would fail."""
        assert self.labels(self.run_once(tmp_path)) == {"a": 1, "b": 1}
        changed = make_config(tmp_path, verifier={"model": "v", "threshold": {"existence": 0.8}})
        label.run(changed)
        assert self.labels(changed) == {"a": 2, "b": 1}
        assert published(changed)[1] == ["c"]

    def test_rows_say_the_thresholds_that_made_their_labels(self, tmp_path: Path) -> None:
        self.run_once(tmp_path)
        changed = make_config(tmp_path, verifier={"model": "v", "threshold": {"existence": 0.8}})
        label.run(changed)
        (annotator,) = {row["annotator"] for row in storage.read_rows(storage.join(changed.run.dir, "feedback"))}
        assert '"existence": 0.8' in annotator

    def test_the_false_accept_rate_follows_the_threshold(self, tmp_path: Path) -> None:
        config = self.run_once(tmp_path)
        metrics = storage.join(config.run.dir, "feedback", "metrics.json")
        assert storage.read_json(metrics)["canaries"]["gullibility"]["value"] == 1
        label.run(make_config(tmp_path, verifier={"model": "v", "threshold": 0.8}))
        assert storage.read_json(metrics)["canaries"]["gullibility"]["value"] == 0

    def test_noise_asks_nothing_and_comes_off_again(self, tmp_path: Path) -> None:
        config = self.run_once(tmp_path)
        noisy = make_config(tmp_path, noise={"existence": {"to_hallucinated": 1}})
        label.run(noisy)
        assert self.labels(noisy) == {"a": 2, "b": 2}
        label.run(config)
        assert self.labels(config) == {"a": 1, "b": 1}

    def test_another_verifier_asks(self, tmp_path: Path) -> None:
        config = self.run_once(tmp_path)
        other = make_config(tmp_path, verifier={"model": "other"})
        with pytest.raises(UserError, match="feedback is finished"):
            label.run(other)
        agreed = other.model_copy(update={"run": config.run.model_copy(update={"overwrite": True})})
        with pytest.raises(UserError, match="not downloaded"):
            label.run(agreed)


def test_a_false_accept_rate_over_the_limit_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TestLabelledAgain().run_once(tmp_path)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "control items" in line]
    assert "100% [21%, 100%] of 1 known-false control items" in line and "do not trust" in line

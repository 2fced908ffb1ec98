"""Labels that replace the AI's: which, how many, and what the rows say about it."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.labelled import feedback, segment_by_ai

from fgaif_ray import storage
from fgaif_ray.config import Config, NoiseConfig
from fgaif_ray.errors import UserError
from fgaif_ray.feedback.label_sources import feedback_stages
from fgaif_ray.feedback.metrics import FeedbackMetrics
from fgaif_ray.feedback.overrides import Overrides, is_flipped
from fgaif_ray.records import (
    ABSENT,
    CONSISTENT,
    FACT_TYPES,
    HALLUCINATED,
    Feedback,
    JudgedFact,
    Segment,
    feedback_schema,
)
from fgaif_ray.rewards.data import from_feedback

MANY = 4000


def make_config(run: Path, **label_settings: Any) -> Config:
    return Config.model_validate(
        {
            "run": {"dir": str(run)},
            "data": {"path": "images"},
            "policy": {"model": "policy"},
            "label": {
                "extractor": {"base_url": "http://127.0.0.1:9/v1", "model": "m"},
                "verifier": {"model": "v"},
                **label_settings,
            },
            "rewards": {"backbone": "b"},
        }
    )


FACT = JudgedFact(type="existence", text="There is a dog.", p_consistent=0.75, consistent=True)


def segment(text: str = "A red dog.") -> Segment:
    return segment_by_ai(text, (CONSISTENT, CONSISTENT, ABSENT), facts=(FACT,))


def write_answers(path: Path, labels: dict[str, str | None], text: str = "A red dog.") -> str:
    answer = {"sample_id": "a", "segment": 0, "text": text, "facts": [None], "labels": labels}
    path.write_text(
        json.dumps(
            {"format": "fgaif-audit-answers", "version": 1, "audit": "x", "annotator": "ann", "answers": [answer]}
        )
    )
    return str(path)


def flips(noise: NoiseConfig, given: int, fact_type: str = "existence") -> set[int]:
    return {index for index in range(MANY) if is_flipped(noise, "sample", index, fact_type, given)}


def noise_of(rate: float, seed: int = 0, direction: str = "to_hallucinated") -> NoiseConfig:
    return NoiseConfig.model_validate({"seed": seed, "existence": {direction: rate}})


@given(st.floats(0, 1), st.floats(0, 1))
@settings(deadline=None, max_examples=20)
def test_a_higher_rate_flips_a_superset(first: float, second: float) -> None:
    low, high = sorted((first, second))
    assert flips(noise_of(low), CONSISTENT) <= flips(noise_of(high), CONSISTENT)


def test_as_many_are_flipped_as_the_rate_says() -> None:
    assert len(flips(noise_of(0.3), CONSISTENT)) / MANY == pytest.approx(0.3, abs=0.03)


def test_a_rate_of_one_flips_all_and_zero_none() -> None:
    assert (len(flips(noise_of(1), CONSISTENT)), len(flips(noise_of(0), CONSISTENT))) == (MANY, 0)


def test_each_direction_has_a_rate_of_its_own() -> None:
    noise = noise_of(1, direction="to_consistent")
    assert (len(flips(noise, HALLUCINATED)), len(flips(noise, CONSISTENT))) == (MANY, 0)


def test_absent_labels_and_other_types_stay() -> None:
    assert flips(noise_of(1), ABSENT) == flips(noise_of(1), CONSISTENT, "relation") == set()


def test_another_seed_flips_others() -> None:
    assert flips(noise_of(0.5, seed=0), CONSISTENT) != flips(noise_of(0.5, seed=1), CONSISTENT)


def test_flips_do_not_depend_on_the_order() -> None:
    overrides = Overrides({}, noise_of(0.5))
    ids = [f"s{index}" for index in range(50)]
    there = {name: overrides.apply(name, [segment()] * 4) for name in ids}
    shuffled = random.Random(0).sample(ids, len(ids))
    assert there == {name: overrides.apply(name, [segment()] * 4) for name in shuffled}


def test_a_flipped_label_says_so_and_keeps_the_ais() -> None:
    (found,) = Overrides({}, noise_of(1)).apply("a", [segment()])
    assert found.labels == {"existence": HALLUCINATED, "attribute": CONSISTENT, "relation": ABSENT}
    assert found.ai_labels == {"existence": CONSISTENT, "attribute": CONSISTENT, "relation": ABSENT}
    assert found.label_sources == {"existence": "noise", "attribute": "ai", "relation": "ai"}
    assert found.facts == (FACT,)


def test_human_labels_replace_those_of_the_configured_types(tmp_path: Path) -> None:
    path = write_answers(
        tmp_path / "a.json", {"existence": "hallucinated", "attribute": "hallucinated", "relation": "unsure"}
    )
    human = {"path": path, "types": ["existence", "relation"]}
    overrides = Overrides.load(make_config(tmp_path, human=human).label, FACT_TYPES)
    found, other = overrides.apply("a", [segment(), segment("A cat.")])
    assert found.labels == {"existence": HALLUCINATED, "attribute": CONSISTENT, "relation": ABSENT}
    assert found.label_sources == {"existence": "human", "attribute": "ai", "relation": "ai"}
    assert other.label_sources == dict.fromkeys(FACT_TYPES, "ai")


def test_noise_acts_on_human_labels(tmp_path: Path) -> None:
    path = write_answers(tmp_path / "a.json", {"existence": "hallucinated"})
    config = make_config(tmp_path, human={"path": path}, noise={"existence": {"to_consistent": 1}})
    (found,) = Overrides.load(config.label, FACT_TYPES).apply("a", [segment()])
    assert (found.labels["existence"], found.label_sources["existence"]) == (CONSISTENT, "noise")


def test_human_labels_of_another_text_are_refused(tmp_path: Path) -> None:
    path = write_answers(tmp_path / "a.json", {"existence": "hallucinated"}, text="A cat.")
    overrides = Overrides.load(make_config(tmp_path, human={"path": path}).label, FACT_TYPES)
    with pytest.raises(UserError, match="another text"):
        overrides.apply("a", [segment()])


@pytest.mark.parametrize(
    ("sample_id", "response", "message"),
    [("b", "A red dog.", "none of this run's responses"), ("a", "A red cat.", "another text")],
)
def test_human_labels_of_another_run_are_found_before_labelling(
    tmp_path: Path, sample_id: str, response: str, message: str
) -> None:
    path = write_answers(tmp_path / "a.json", {"existence": "consistent"})
    overrides = Overrides.load(make_config(tmp_path, human={"path": path}).label, FACT_TYPES)
    overrides.check([("a", "A red dog.")])
    with pytest.raises(UserError, match=message):
        overrides.check([(sample_id, response)])


def test_human_labels_of_no_configured_type_are_refused(tmp_path: Path) -> None:
    path = write_answers(tmp_path / "a.json", {"existence": "consistent"})
    with pytest.raises(UserError, match="no label of the types relation"):
        Overrides.load(make_config(tmp_path, human={"path": path, "types": ["relation"]}).label, FACT_TYPES)


class TestFingerprint:
    def key(self, folder: Path, **label_settings: Any) -> str:
        if storage.read_manifest(str(folder), "responses") is None:
            stage = storage.Stage(str(folder), "responses", "f")
            stage.begin()
            stage.publish({"rows": 0})
        return feedback_stages(make_config(folder, **label_settings))[0].fingerprint

    def test_noise_changes_it(self, tmp_path: Path) -> None:
        plain = self.key(tmp_path)
        assert plain != self.key(tmp_path, noise={"relation": {"to_consistent": 0.1}})

    def test_the_content_of_the_human_labels_changes_it(self, tmp_path: Path) -> None:
        path = write_answers(tmp_path / "a.json", {"existence": "hallucinated"})
        first = self.key(tmp_path, human={"path": path})
        write_answers(tmp_path / "a.json", {"existence": "consistent"})
        assert len({self.key(tmp_path), first, self.key(tmp_path, human={"path": path})}) == 3

    def test_settings_without_effect_do_not(self, tmp_path: Path) -> None:
        assert self.key(tmp_path) == self.key(tmp_path, noise={"seed": 7})


@pytest.mark.parametrize("noise", [{"existence": {"to_hallucinated": 1.1}}, {"objects": {"to_consistent": 0.1}}])
def test_wrong_noise_is_refused(tmp_path: Path, noise: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        make_config(tmp_path, noise=noise)


class TestRows:
    @pytest.fixture
    def rows(self, tmp_path: Path) -> list[Feedback]:
        """A row with noise and one without the columns about it, both read back from Parquet."""
        noisy = feedback("a", *Overrides({}, noise_of(1)).apply("a", [segment(), segment()]))
        plain = feedback("b", segment()).to_row()
        for part in plain["segments"]:
            del part["ai_labels"], part["label_sources"]
        storage.write_part(str(tmp_path), [noisy.to_row(), plain], feedback_schema(FACT_TYPES))
        return [Feedback.from_row(row) for row in storage.read_rows(str(tmp_path))]

    def test_sources_and_ai_labels_survive_parquet(self, rows: list[Feedback]) -> None:
        part = rows[0].segments[0]
        assert (part.label_sources["existence"], part.ai_labels["existence"]) == ("noise", CONSISTENT)

    def test_rows_without_them_are_the_ais(self, rows: list[Feedback]) -> None:
        part = rows[1].segments[0]
        assert part.ai_labels == part.labels

    def test_figures_count_the_sources(self, rows: list[Feedback]) -> None:
        figures = FeedbackMetrics(FACT_TYPES)
        for found in rows:
            figures.add(found)
        counted = figures.to_dict()
        assert counted["label_sources"]["existence"] == {"ai": 1, "human": 0, "noise": 2}
        assert counted["labels_replaced"] == {"existence": 2, "attribute": 0, "relation": 0}

    def test_reward_models_learn_the_replaced_labels(self, rows: list[Feedback]) -> None:
        noisy, plain = from_feedback(rows, FACT_TYPES)
        assert noisy.labels["existence"] == (HALLUCINATED, HALLUCINATED)
        assert plain.labels["existence"] == (CONSISTENT,)

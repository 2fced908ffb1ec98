"""Thresholds from labelled facts: the best one, figures without optimism, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import audit_data

from actors.labelling.thresholds import calibration_lines, find_thresholds
from fgaif_ray import storage
from fgaif_ray.audit.calibration import Facts, calibrate, choose_threshold, cross_validate, fit_thresholds
from fgaif_ray.audit.items import cell_weights
from fgaif_ray.audit.labelled_facts import read_control_facts, read_labelled_facts
from fgaif_ray.config import LabelConfig, load_config
from fgaif_ray.errors import UserError
from fgaif_ray.feedback.label_sources import threshold_key
from fgaif_ray.records import FACT_TYPES
from jobs import audit as audit_job

EXTRACTOR = {"base_url": "http://127.0.0.1:9/v1", "model": "m"}


def label_config(**verifier: Any) -> LabelConfig:
    return LabelConfig.model_validate({"extractor": EXTRACTOR, "verifier": {"model": "v"} | verifier})


def facts_of(p: list[float], truth: list[bool], types: list[str] | None = None, per_image: int = 2) -> Facts:
    return Facts(
        images=[f"{place // per_image}.png" for place in range(len(p))],
        types=types or ["existence"] * len(p),
        consistent=np.array(truth, dtype=bool),
        p_consistent=np.array(p),
        weights=np.ones(len(p)),
    )


def shifted(count: int, seed: int = 0, cut: float = 0.2) -> Facts:
    """A verifier that separates well, but at ``cut`` in place of 0.5."""
    generator = np.random.default_rng(seed)
    truth = generator.random(count) < 0.7
    p = np.where(truth, generator.uniform(cut - 0.05, 1, count), generator.uniform(0, cut + 0.05, count))
    return facts_of(p.tolist(), truth.tolist(), [FACT_TYPES[place % 3] for place in range(count)])


def score(p: np.ndarray, truth: np.ndarray, weights: np.ndarray, threshold: float) -> float:
    said = p >= threshold
    right, wrong = weights[truth & said].sum(), weights[~truth & ~said].sum()
    return float((right / weights[truth].sum() + wrong / weights[~truth].sum()) / 2)


@given(
    st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans(), st.floats(0.1, 10)), min_size=2, max_size=30).filter(
        lambda facts: len({truth for _, truth, _ in facts}) == 2
    )
)
@settings(deadline=None, max_examples=200)
def test_no_threshold_is_better_than_the_chosen_one(facts: list[tuple[float, bool, float]]) -> None:
    p, truth, weights = (np.array(column) for column in zip(*facts))
    chosen = choose_threshold(p, truth, weights)
    assert 0 < chosen < 1
    values = np.unique(p)
    others = [0.5, *np.append((values[:-1] + values[1:]) / 2, [values[0] / 2, (1 + values[-1]) / 2])]
    best = max(score(p, truth, weights, other) for other in others if 0 < other < 1)
    assert score(p, truth, weights, chosen) == pytest.approx(best)


def test_half_is_kept_where_it_is_as_good_as_any() -> None:
    assert choose_threshold([0.1, 0.9], [False, True], [1, 1]) == 0.5


def test_the_middle_of_the_best_interval_is_taken() -> None:
    assert choose_threshold([0.6, 0.8], [False, True], [1, 1]) == pytest.approx(0.7)


def test_weights_count() -> None:
    p, truth = [0.6, 0.7, 0.8, 0.9], [False, True, False, True]
    assert choose_threshold(p, truth, [1, 1, 5, 1]) == pytest.approx(0.85)
    assert choose_threshold(p, truth, [1, 5, 1, 1]) == pytest.approx(0.65)


def test_a_type_of_one_class_takes_the_threshold_of_all() -> None:
    facts = facts_of(
        [0.2, 0.3, 0.8, 0.9], [False, True, True, True], ["existence", "existence", "relation", "relation"]
    )
    thresholds = fit_thresholds(facts, FACT_TYPES)
    assert thresholds == dict.fromkeys(FACT_TYPES, pytest.approx(0.25))


def test_types_have_thresholds_of_their_own() -> None:
    facts = facts_of(
        [0.1, 0.3, 0.7, 0.9], [False, True, False, True], ["existence", "existence", "relation", "relation"]
    )
    thresholds = fit_thresholds(facts, FACT_TYPES)
    assert (thresholds["existence"], thresholds["relation"]) == (pytest.approx(0.2), pytest.approx(0.8))


def test_calibration_finds_a_shifted_threshold() -> None:
    found = calibrate(shifted(600), FACT_TYPES)
    figures = found["figures"]["all"]
    assert all(abs(threshold - 0.2) < 0.06 for threshold in found["thresholds"].values())
    assert figures["cross_validated"]["balanced_accuracy"]["value"] > figures["at_half"]["balanced_accuracy"]["value"]
    low, high = figures["cross_validated"]["balanced_accuracy"]["interval"]
    assert low < figures["cross_validated"]["balanced_accuracy"]["value"] < high


def test_cross_validation_sees_no_gain_in_noise() -> None:
    """Fitted to noise a threshold looks better than chance; held-out images tell that it is not."""
    gaps, held_out = [], []
    for seed in range(40):
        generator = np.random.default_rng(seed)
        facts = facts_of(generator.random(30).tolist(), (np.arange(30) % 2 == 0).tolist(), per_image=1)
        figures = calibrate(facts, FACT_TYPES)["figures"]["all"]
        fitted, tested = (figures[how]["balanced_accuracy"]["value"] for how in ("fitted", "cross_validated"))
        gaps.append(fitted - tested)
        held_out.append(tested)
    assert np.mean(gaps) > 0.05
    assert np.mean(held_out) < 0.55


def test_held_out_images_do_not_decide_their_own_threshold() -> None:
    facts = facts_of([0.1, 0.9, 0.1, 0.9, 0.8, 0.85], [False, True, False, True, False, True])
    (fits,) = {tuple(cross_validate(facts, FACT_TYPES).tolist())}
    assert fits[4]  # its own image would have moved the threshold above 0.8


def test_one_image_cannot_be_cross_validated() -> None:
    facts = facts_of([0.1, 0.9], [False, True])
    assert calibrate(facts, FACT_TYPES)["figures"]["all"]["cross_validated"] is None


def test_calibration_error_is_the_gap_between_probability_and_truth() -> None:
    facts = facts_of([0.75] * 4 + [0.05] * 4, [True, True, True, False, True, False, False, False])
    error = calibrate(facts, FACT_TYPES)["figures"]["all"]["expected_calibration_error"]
    assert error["value"] == pytest.approx(0.5 * 0.0 + 0.5 * 0.2)


def test_figures_are_printed_and_written(tmp_path: Path) -> None:
    found = calibrate(shifted(60), FACT_TYPES)
    storage.write_json(str(tmp_path / "figures.json"), found)
    lines = calibration_lines(found, "runs/a/calibration")
    assert "60 labelled facts of 30 images" in lines[0]
    assert [line.split()[0] for line in lines[2:6]] == ["all", *FACT_TYPES]


def write_lines(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


RIGHT = {"image": "a.png", "fact": "There is a dog.", "type": "existence", "consistent": True}
WRONG = RIGHT | {"fact": "There is a cat.", "consistent": False, "weight": 2}


def test_facts_are_read_with_paths_relative_to_their_file(tmp_path: Path) -> None:
    first, second = read_labelled_facts(
        write_lines(tmp_path / "f.jsonl", RIGHT, WRONG | {"image": "s3://b/c.png"}), FACT_TYPES
    )
    assert (first.image, first.weight, first.consistent) == (str(tmp_path / "a.png"), 1.0, True)
    assert (second.image, second.weight, second.consistent) == ("s3://b/c.png", 2.0, False)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([RIGHT], r"All facts in .* are right: .* add some that are wrong"),
        ([WRONG], r"are wrong: .* add some that are right"),
        ([], r"holds no facts"),
        ([RIGHT, WRONG | {"type": "color"}], r"line 2 has the type 'color': give one of existence"),
        ([RIGHT, WRONG | {"consistent": "no"}], r"line 2 does not say whether"),
        ([RIGHT, WRONG | {"weight": 0}], r"line 2 has the weight 0"),
        ([RIGHT, WRONG | {"image": ""}], r"line 2 has no text in 'image'"),
    ],
)
def test_a_set_that_cannot_be_used_is_refused_in_a_sentence(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as failure:
        read_labelled_facts(write_lines(tmp_path / "f.jsonl", *rows), FACT_TYPES)
    assert "\n" not in str(failure.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Cannot read the facts"):
        read_labelled_facts(str(tmp_path / "none.jsonl"), FACT_TYPES)


def test_a_fact_may_be_about_several_images(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "f.jsonl", RIGHT | {"image": ["a.png", "s3://b/c.png"]}, WRONG)
    several, single = read_labelled_facts(path, FACT_TYPES)
    assert several.images == (str(tmp_path / "a.png"), "s3://b/c.png")
    assert several.to_line()["image"] == list(several.images)
    assert single.to_line()["image"] == single.image


def test_a_control_item_may_be_about_several_images(tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "f.jsonl", WRONG | {"image": ["a.png", "b.png"]})
    [fact] = read_control_facts(lines, FACT_TYPES)
    assert fact.images == (str(tmp_path / "a.png"), str(tmp_path / "b.png"))


def test_control_facts_are_wrong_unless_they_say_so(tmp_path: Path) -> None:
    bare = {"image": "a.png", "fact": "There is a cat."}
    facts = read_control_facts(write_lines(tmp_path / "c.jsonl", bare, bare | {"consistent": True}), FACT_TYPES)
    assert [fact.consistent for fact in facts] == [False, True]


def test_a_number_stands_for_all_types() -> None:
    assert label_config(threshold=0.7).verifier.threshold == dict.fromkeys(FACT_TYPES, 0.7)


def test_a_type_without_a_threshold_has_the_plain_one() -> None:
    config = load_config("configs/shapes.yaml", ["label.verifier.threshold={relation: 0.8}"])
    assert config.label.verifier.threshold == {"existence": 0.5, "attribute": 0.5, "relation": 0.8, "novelty": 0.5}


@pytest.mark.parametrize("threshold", [0, 1, 1.5, "high", {"relation": 0}])
def test_wrong_thresholds_are_refused(threshold: Any) -> None:
    with pytest.raises(ValueError):
        label_config(threshold=threshold)


def test_thresholds_come_from_one_place() -> None:
    with pytest.raises(ValueError, match="leave its threshold out"):
        label_config(threshold=0.6, calibration={"path": "f.jsonl"})


def test_the_key_of_thresholds_is_that_of_the_number_or_of_the_sets_content(tmp_path: Path) -> None:
    assert threshold_key(label_config().verifier, FACT_TYPES) == 0.5
    path = write_lines(tmp_path / "f.jsonl", RIGHT, WRONG)
    calibrated = label_config(calibration={"path": path}).verifier
    before = threshold_key(calibrated, FACT_TYPES)
    assert threshold_key(calibrated, FACT_TYPES) == before
    write_lines(tmp_path / "f.jsonl", RIGHT, WRONG, WRONG)
    assert threshold_key(calibrated, FACT_TYPES) != before


def test_thresholds_without_calibration_start_nothing(tmp_path: Path) -> None:
    config = audit_data.labelled_run(tmp_path)
    assert find_thresholds(config) == dict.fromkeys(FACT_TYPES, 0.5)


class TestAuditedFacts:
    def facts(self, folder: Path, *changes: Any) -> list[dict[str, Any]]:
        config = audit_data.labelled_run(folder)
        sample = audit_data.sample_of(config)
        paths = []
        for who, change in enumerate(changes or (lambda answers: None,)):
            path = audit_data.answer_file(folder / f"{who}.json", sample, annotator=f"person {who}")
            content = json.loads(Path(path).read_text())
            change(content["answers"])
            Path(path).write_text(json.dumps(content))
            paths.append(path)
        audit_job.import_answers(config, paths)
        text = audit_data.audit_file(config, "facts.jsonl").read_text()
        return [json.loads(line) for line in text.split("\n") if line]  # facts hold other line separators

    def test_an_audits_answers_can_be_calibrated_on(self, tmp_path: Path) -> None:
        written = self.facts(tmp_path)
        sample = Path(tmp_path / "audit" / "facts.jsonl")
        read = read_labelled_facts(str(sample), FACT_TYPES)
        assert len(read) == len(written) > 0
        assert all(storage.exists(fact.image) for fact in read)

    def test_people_who_differ_leave_a_fact_out(self, tmp_path: Path) -> None:
        def turn(answers: list[dict[str, Any]]) -> None:
            first = next(answer for answer in answers if answer["facts"])
            first["facts"][0] = "wrong" if first["facts"][0] == "right" else "right"

        alone, both = self.facts(tmp_path), self.facts(tmp_path, lambda answers: None, turn)
        assert len(both) == len(alone) - 1

    def test_weights_are_those_of_the_audits_cells(self, tmp_path: Path) -> None:
        written = self.facts(tmp_path)
        config_sample = Path(tmp_path / "audit" / "sample.json")
        sample = audit_data.Audit.from_dict(json.loads(config_sample.read_text()))
        items = [item for item in sample.items if item.facts]
        expected = cell_weights([item.cell for item in items], sample.population)
        weights = [weight for item, weight in zip(items, expected) for _ in item.facts]
        assert [fact["weight"] for fact in written] == pytest.approx(weights, abs=1e-5)

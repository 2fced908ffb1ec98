"""Which labelled responses become pairs, and which of two is the better one."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.preference_data import BAD, FALSE, GOOD, NOTHING, PROMPT, TRUE, UNKNOWN, WORSE, labelled, preference_run
from support.reward_helpers import CHECKPOINT

from fgaif_ray import storage
from fgaif_ray.config import load_config
from fgaif_ray.errors import UserError
from fgaif_ray.preferences.pair import PreferencePair
from fgaif_ray.preferences.pairs import load_pairs, make_pairs
from fgaif_ray.preferences.worth import response_worth, segment_worths
from fgaif_ray.records import FACT_TYPES, Feedback, JudgedFact, feedback_schema
from fgaif_ray.rewards.composition import RewardOptions
from fgaif_ray.vlm.front_end import load_front_end

OPTIONS = RewardOptions(weights=dict.fromkeys(FACT_TYPES, 1.0))
CONTEXT = "There is a red circle. "


def texts(pairs: list[PreferencePair]) -> set[tuple[str, str]]:
    return {(pair.chosen.text, pair.rejected.text) for pair in pairs}


def responses(*rows: Feedback, margin: float = 0.5, most: int = 9, options: RewardOptions = OPTIONS) -> list:
    return make_pairs(rows, "response", options, margin, most)


def segments(*rows: Feedback, margin: float = 0.5, most: int = 9) -> list[PreferencePair]:
    return make_pairs(rows, "segment", OPTIONS, margin, most)


class TestWorth:
    def test_a_response_is_worth_what_its_labels_would_be_paid(self) -> None:
        assert response_worth(labelled("a", GOOD), OPTIONS) == 2
        assert response_worth(labelled("a", BAD), OPTIONS) == 0
        assert response_worth(labelled("a", WORSE), OPTIONS) == -2
        assert segment_worths(labelled("a", BAD).segments, OPTIONS) == [1, -1]

    def test_weights_count(self) -> None:
        options = RewardOptions(weights=dict(zip(FACT_TYPES, (3.0, 1.0, 1.0), strict=True)))
        assert response_worth(labelled("a", GOOD), options) == 6

    def test_facts_are_paid_each_and_what_is_false_costs_more(self) -> None:
        """Of three facts of one type one is false: two true ones earn 2, the false one costs 3."""
        [segment] = labelled("a", [("A red, round dog.", FALSE)]).segments
        facts = tuple(
            JudgedFact(type=FACT_TYPES[0], text=str(number), p_consistent=0.5, consistent=number > 0)
            for number in range(3)
        )
        options = replace(OPTIONS, unit="fact", false_cost=3.0)
        assert segment_worths([replace(segment, facts=facts)], options) == [-1]
        assert segment_worths([segment], options) == [-3]

    def test_a_label_that_is_not_to_be_used_counts_nothing(self) -> None:
        assert segment_worths(labelled("a", [("Maybe a cat.", UNKNOWN)]).segments, OPTIONS) == [0]

    def test_a_missing_end_and_length_cost_what_they_cost_in_ppo(self) -> None:
        front_end = load_front_end(CHECKPOINT)
        cut = labelled("a", GOOD, front_end=front_end, finish_reason="length")
        assert response_worth(cut, replace(OPTIONS, missing_eos_penalty=1.5)) == 0.5
        tokens = len(cut.response.token_ids or ())
        assert response_worth(cut, replace(OPTIONS, length_penalty=0.1, length_target=tokens - 2)) == pytest.approx(1.8)

    def test_a_provided_response_has_ended_and_no_length(self) -> None:
        options = replace(OPTIONS, length_penalty=1.0, missing_eos_penalty=1.0)
        assert response_worth(labelled("a", GOOD), options) == 2

    def test_a_repeated_truth_earns_nothing(self) -> None:
        [segment] = labelled("a", [("A dog.", TRUE)]).segments
        weights = dict.fromkeys((*FACT_TYPES, "novelty"), 1.0)
        worths = []
        for code in (TRUE, FALSE):
            labels = {**segment.labels, "novelty": code}
            row = Feedback.from_row(labelled("a", [("A dog.", TRUE)]).to_row())
            changed = [{**one.to_row(), "labels": labels} for one in row.segments]
            again = Feedback.from_row({**row.to_row(), "segments": changed})
            worths += segment_worths(again.segments, RewardOptions(weights=weights))
        assert worths == [1, 0]


class TestResponses:
    def test_the_best_goes_with_the_worst_and_each_is_in_one_pair(self) -> None:
        best = [("A cat. ", TRUE), ("A dog. ", TRUE), ("A cow.", TRUE)]
        pairs = responses(*(labelled(str(n), said) for n, said in enumerate([BAD, best, WORSE, GOOD])))
        assert [(pair.chosen.worth, pair.rejected.worth) for pair in sorted(pairs, key=lambda p: -p.margin)] == [
            (3, -2), (2, 0),
        ]  # fmt: skip

    def test_pairs_are_of_one_image_and_prompt(self) -> None:
        other = labelled("b", WORSE, image="cat.png"), labelled("c", WORSE, prompt="What is it?")
        assert responses(labelled("a", GOOD), *other) == []

    def test_the_difference_has_to_reach_the_margin(self) -> None:
        rows = labelled("a", GOOD), labelled("b", BAD)
        assert len(responses(*rows, margin=2)) == 1
        assert responses(*rows, margin=2.1) == []

    def test_equal_ones_make_no_pair_whatever_the_margin(self) -> None:
        assert responses(labelled("a", GOOD), labelled("b", [("A cat. ", TRUE), ("A dog.", TRUE)]), margin=0) == []

    def test_silence_is_no_better_than_a_mistake(self) -> None:
        silent = labelled("a", []), labelled("b", [("This is an image.", NOTHING)])
        assert responses(*silent, labelled("c", WORSE)) == []

    def test_of_a_prompt_the_clearest_pairs_are_kept(self) -> None:
        best = [("A cat. ", TRUE), ("A dog. ", TRUE), ("A cow.", TRUE)]
        rows = [labelled(str(n), said) for n, said in enumerate([BAD, best, WORSE, GOOD])]
        [pair] = responses(*rows, most=1)
        assert pair.margin == 5

    def test_the_order_of_rows_makes_no_difference(self) -> None:
        rows = [labelled(str(n), said) for n, said in enumerate([GOOD, BAD, WORSE, GOOD])]
        assert responses(*rows) == responses(*reversed(rows))

    def test_a_response_has_no_context(self) -> None:
        [pair] = responses(labelled("a", GOOD), labelled("b", WORSE))
        assert pair.chosen.text == pair.chosen.response.text and pair.context == ""
        assert (pair.images, pair.prompt) == (("dog.png",), PROMPT)


class TestSegments:
    def test_both_follow_the_same_clean_context(self) -> None:
        [pair] = segments(labelled("a", GOOD), labelled("b", BAD))
        assert pair.context == CONTEXT == pair.rejected.context
        assert texts([pair]) == {("A blue square is visible.", "There is a green star.")}

    def test_the_first_segments_have_no_context(self) -> None:
        assert texts(segments(labelled("a", GOOD), labelled("b", WORSE))) == {
            (CONTEXT.strip(), "There is a yellow ring.")
        }

    @pytest.mark.parametrize("code", [FALSE, UNKNOWN])
    def test_nothing_is_compared_after_a_context_that_is_not_clean(self, code: int | None) -> None:
        rows = [
            labelled(name, [("A cat. ", code), (said, label)])
            for name, said, label in (("a", "A dog.", TRUE), ("b", "A cow.", FALSE))
        ]
        assert segments(*rows) == []

    def test_contexts_that_differ_are_not_compared(self) -> None:
        one, other = [("A cat. ", TRUE), ("A dog.", TRUE)], [("A hat. ", TRUE), ("A cow.", FALSE)]
        assert segments(labelled("a", one), labelled("b", other)) == []

    @pytest.mark.parametrize("better", [("This is an image.", NOTHING), ("A dog, perhaps.", UNKNOWN)])
    def test_the_better_one_says_something_true(self, better: tuple[str, int | None]) -> None:
        assert segments(labelled("a", [better]), labelled("b", [("A cow.", FALSE)])) == []

    def test_the_worse_one_is_hallucinated(self) -> None:
        assert segments(labelled("a", [("A dog.", TRUE)]), labelled("b", [("This is an image.", NOTHING)])) == []

    def test_a_text_is_in_one_pair_of_a_context(self) -> None:
        rows = [labelled(str(n), said) for n, said in enumerate([GOOD, GOOD, BAD, BAD])]
        assert len(segments(*rows)) == 1


class TestRuns:
    def test_pairs_of_a_run(self, tmp_path: Path) -> None:
        config = preference_run(tmp_path)
        assert texts(load_pairs(config, "response")) == {("".join(w for w, _ in GOOD), "".join(w for w, _ in WORSE))}
        found = load_pairs(config, "segment")
        assert {pair.context for pair in found} == {"", CONTEXT}
        assert len({pair.pair_id for pair in found}) == len(found) == 6

    def test_settings_of_the_run_count(self, tmp_path: Path) -> None:
        config = preference_run(tmp_path, "align.dpo.pairs_per_prompt=1", "align.dpo.margin=2")
        assert len(load_pairs(config, "segment")) == 3
        with pytest.raises(UserError, match=r"lower align\.dpo\.margin \(4\.5\)"):
            load_pairs(preference_run(tmp_path / "other", "align.dpo.margin=4.5"), "response")

    def test_without_labels_the_command_is_named(self, tmp_path: Path) -> None:
        config = preference_run(tmp_path)
        storage.remove_folder(storage.join(config.run.dir, "feedback"))
        with pytest.raises(UserError, match=r"jobs\.label"):
            load_pairs(config, "response")

    def test_one_response_to_each_prompt_is_too_few(self, tmp_path: Path) -> None:
        config = preference_run(tmp_path)
        rows = [row for row in storage.read_rows(f"{config.run.dir}/feedback") if row["sample_id"].endswith("good")]
        [part] = storage.list_parts(f"{config.run.dir}/feedback")
        storage.remove_file(part)
        storage.write_part(f"{config.run.dir}/feedback", rows, feedback_schema(FACT_TYPES))
        with pytest.raises(UserError, match="one response to each image and prompt"):
            load_pairs(config, "response")

    def test_labels_of_other_types_are_named(self, tmp_path: Path) -> None:
        config = preference_run(tmp_path, "run.fact_types=[existence,attribute,relation,novelty]")
        with pytest.raises(UserError, match=r"other fact types .*novelty"):
            load_pairs(config, "response")


class TestConfiguration:
    def test_several_samples_are_needed(self) -> None:
        with pytest.raises(UserError, match=r"align\.algorithm=dpo compares responses .* sample\.samples_per_prompt"):
            load_config("configs/shapes.yaml", ["align.algorithm=dpo"])

    def test_rows_may_bring_them(self, tmp_path: Path) -> None:
        rows = ["data.source=rows", f"data.path={tmp_path}", "data.shapes={}"]
        load_config("configs/shapes.yaml", [*rows, "align.algorithm=dpo"])

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ("align.critic_from_reward=existence", "has no critic"),
            ("align.dpo.pairs_per_step=1", "1 pairs a step do not go round 2 learner workers"),
        ],
    )
    def test_what_does_not_go_with_preferences_is_refused(self, change: str, said: str) -> None:
        with pytest.raises(UserError, match=said):
            load_config("configs/shapes.yaml", ["align.algorithm=dpo", "sample.samples_per_prompt=2", change])

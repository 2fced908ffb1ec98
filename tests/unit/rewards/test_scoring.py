import copy
import gc
import io
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.reward_helpers import CHECKPOINT, PROMPT, RESPONSE, offline_model, picture, save_reward_models
from transformers import AutoTokenizer

from fgaif_ray.errors import ItemError
from fgaif_ray.images import decode_image
from fgaif_ray.pixel_budget import PixelBudget
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.rewards import scoring
from fgaif_ray.rewards.composition import RewardOptions, RewardValue
from fgaif_ray.rewards.encoding import ScoringItem
from fgaif_ray.rewards.model import RewardModel
from fgaif_ray.rewards.preparation import segment_response, token_ends
from fgaif_ray.rewards.scoring import (
    ItemVerdicts,
    ScoredBatch,
    combined_version,
    compose_response,
    make_batch,
    merge_verdicts,
    probe_batch,
    score_batches,
)
from fgaif_ray.serving.remote_reward import label_fields, split_query

TOKENIZER = AutoTokenizer.from_pretrained(CHECKPOINT)
ONES = dict.fromkeys(FACT_TYPES, 1.0)
CERTAIN = {"absent": [1.0, 0.0, 0.0], "consistent": [0.0, 1.0, 0.0], "hallucinated": [0.0, 0.0, 1.0]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    return offline_model(save_reward_models(tmp_path_factory.mktemp("rewards")))


def verdicts(*rows: tuple[str, str, str]) -> dict[str, np.ndarray]:
    """Certain probabilities; one row of existence, attribute, relation per segment."""
    return {
        fact_type: np.array([CERTAIN[row[index]] for row in rows], np.float32).reshape(-1, 3)
        for index, fact_type in enumerate(FACT_TYPES)
    }


def code_of(error: pytest.ExceptionInfo[ItemError]) -> str:
    return error.value.code


# Composition


def compose(text: str, rows: dict[str, np.ndarray], options: RewardOptions | None = None, with_ids: bool = True):
    ids = TOKENIZER.encode(text, add_special_tokens=False) if with_ids else None
    response = segment_response(TOKENIZER, text if ids is None else None, ids)
    return compose_response(
        response, rows, token_ends(TOKENIZER, response), options or RewardOptions(weights=ONES), "v1"
    )


def test_each_segment_gets_its_own_rewards() -> None:
    scored = compose(
        RESPONSE, verdicts(("consistent", "hallucinated", "absent"), ("consistent", "consistent", "hallucinated"))
    )
    assert [segment.rewards for segment in scored.segments] == [
        {"existence": 1.0, "attribute": -1.0, "relation": 0.0},
        {"existence": 1.0, "attribute": 1.0, "relation": -1.0},
    ]
    assert [segment.reward for segment in scored.segments] == [0.0, 1.0]
    assert scored.reward == 1.0


def test_the_segments_are_those_of_the_text() -> None:
    scored = compose(RESPONSE, verdicts(("absent",) * 3, ("absent",) * 3))
    parts = [scored.response[segment.start : segment.end] for segment in scored.segments]
    assert "".join(parts) == RESPONSE and len(parts) == 2


def test_weights_apply() -> None:
    options = RewardOptions(weights={"existence": 1.0, "attribute": 0.0, "relation": 3.0})
    scored = compose("A red circle is here.", verdicts(("consistent", "consistent", "hallucinated")), options)
    assert scored.reward == -2.0


def test_weights_are_matched_with_probabilities_by_name() -> None:
    options = RewardOptions(weights={"relation": 3.0, "existence": 1.0, "attribute": 0.0})
    scored = compose("A red circle is here.", verdicts(("consistent", "consistent", "hallucinated")), options)
    assert scored.segments[0].rewards == {"relation": -3.0, "existence": 1.0, "attribute": 0.0}


@pytest.mark.parametrize(("value", "reward"), [("expected", 0.1), ("argmax", 1.0)])
def test_the_chosen_value_of_a_verdict_is_paid(value: RewardValue, reward: float) -> None:
    """Of a reward model that is not sure: existence probably consistent, the others absent."""
    rows = verdicts(("absent", "absent", "absent"))
    rows["existence"] = np.array([[0.1, 0.5, 0.4]], np.float32)
    scored = compose("A red circle is here.", rows, RewardOptions(weights=ONES, value=value))
    [segment] = scored.segments
    assert segment.rewards == pytest.approx({"existence": reward, "attribute": 0.0, "relation": 0.0})
    assert scored.reward == pytest.approx(reward)
    assert sum(scored.token_rewards or []) == pytest.approx(reward)


def test_token_rewards_lie_on_the_last_token_of_each_segment() -> None:
    scored = compose(RESPONSE, verdicts(("consistent", "absent", "absent"), ("hallucinated", "absent", "absent")))
    ends = [segment.token_end for segment in scored.segments]
    length = len(TOKENIZER.encode(RESPONSE, add_special_tokens=False))
    assert ends[1] == length - 1
    assert scored.token_rewards == [1.0 if i == ends[0] else -1.0 if i == ends[1] else 0.0 for i in range(length)]


def test_a_single_segment_keeps_its_reward() -> None:
    scored = compose("A red circle is here.", verdicts(("hallucinated", "absent", "absent")))
    assert len(scored.segments) == 1
    assert sum(scored.token_rewards or []) == -1.0


def test_without_ids_there_are_no_token_rewards() -> None:
    scored = compose("A red circle is here.", verdicts(("consistent", "absent", "absent")), with_ids=False)
    assert scored.token_rewards is None and scored.segments[0].token_end is None


@pytest.mark.parametrize("ids", [[], [TOKENIZER.eos_token_id]])
def test_an_empty_response_earns_nothing(ids: list[int]) -> None:
    response = segment_response(TOKENIZER, None, ids)
    scored = compose_response(response, verdicts(), token_ends(TOKENIZER, response), RewardOptions(weights=ONES), "v1")
    assert (scored.segments, scored.reward, scored.token_rewards) == ([], 0, [0.0] * len(ids))


def test_a_probability_that_is_not_finite_raises() -> None:
    rows = verdicts(("consistent", "absent", "absent"))
    rows["relation"][0, 1] = np.nan
    with pytest.raises(ValueError, match="finite"):
        compose("A red circle is here.", rows)


# Batches


def items_of(texts: list[str]) -> list[tuple[tuple[bytes, ...], str, list[str]]]:
    return [
        ((picture(index),), PROMPT, segment_response(TOKENIZER, text, None).segments)
        for index, text in enumerate(texts)
    ]


def test_scores_are_those_of_the_model_whatever_the_batches(model: RewardModel) -> None:
    # In float64: random weights may magnify what float32 rounds off, by how much depends on the processor.
    model = copy.deepcopy(model).double()
    model.heads.float()
    items = items_of([RESPONSE, "A red circle.", "", RESPONSE * 2, "A blue square is left of a red circle."])
    batches = [make_batch(items[:2]), make_batch(items[2:])]
    merged = [outcome for batch in score_batches(model, FACT_TYPES, batches) for outcome in batch]
    for ((data,), prompt, segments), outcome in zip(items, merged, strict=True):
        item = ScoringItem([Image.open(io.BytesIO(data)).convert("RGB")], prompt, segments)
        for fact_type in FACT_TYPES:
            [expected] = model.score(fact_type, [item])
            np.testing.assert_allclose(outcome.probabilities[fact_type], expected, atol=1e-6)


def test_an_item_that_cannot_be_scored_fails_alone(model: RewardModel) -> None:
    items = items_of([RESPONSE] * 4)
    items[1] = ((picture(), b"no image"), PROMPT, ["A red circle."])
    items[2] = ((picture(),), PROMPT, ["A red circle. " * 2000])
    [outcomes] = score_batches(model, FACT_TYPES, [make_batch(items)])
    codes = [outcome.code if isinstance(outcome, ItemError) else None for outcome in outcomes]
    assert codes == [None, "invalid_image", "not_scorable", None]


def test_images_by_path_are_scored_like_their_files(model: RewardModel, tmp_path: Path) -> None:
    """Of every format that a run reads; HTTP requests may hold fewer."""
    path = tmp_path / "a.tiff"
    Image.open(io.BytesIO(picture())).save(path)
    items = [((image,), PROMPT, ["A red circle."]) for image in (picture(), str(path), str(tmp_path / "none.png"))]
    [(by_file, by_path, missing)] = score_batches(model, FACT_TYPES, [make_batch(items)])
    assert isinstance(by_path, ItemVerdicts) and isinstance(by_file, ItemVerdicts)
    np.testing.assert_allclose(by_path.probabilities["existence"], by_file.probabilities["existence"], atol=1e-5)
    assert isinstance(missing, ItemError) and missing.code == "invalid_image" and "none.png" in str(missing)


@pytest.mark.parametrize("prompt", ["\ud800", "Compare <image> and <image>.", "</s>"])
def test_an_item_that_cannot_be_read_costs_the_others_no_pass(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch, prompt: str
) -> None:
    """A lone surrogate, which tokenizers refuse with a TypeError, was the end of a batch of all callers."""
    passes = []
    judge = model.judge_encoded

    def count(fact_types: Any, items: Any) -> Any:
        passes.append(len(items))
        return judge(fact_types, items)

    monkeypatch.setattr(model, "judge_encoded", count)
    items = items_of([RESPONSE] * 4)
    expected, _ = score_batches(model, FACT_TYPES, [make_batch([items[0], *items[2:]]), make_batch([])])
    items[1] = ((picture(),), prompt, ["A red circle."])
    first, second = score_batches(model, FACT_TYPES, [make_batch(items[:2]), make_batch(items[2:])])
    assert isinstance(first[1], ItemError)
    assert passes == [3, 3]
    for outcome, same in zip([first[0], *second], expected, strict=True):
        for fact_type in FACT_TYPES:
            np.testing.assert_array_equal(outcome.probabilities[fact_type], same.probabilities[fact_type])


def test_an_image_is_decoded_for_the_items_that_show_it_and_let_go(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[weakref.ref[Image.Image]] = []
    alive: list[int] = []

    def decode(data: bytes, budget: PixelBudget) -> Image.Image:
        image = decode_image(data, budget)
        decoded.append(weakref.ref(image))
        gc.collect()
        alive.append(sum(reference() is not None for reference in decoded))
        return image

    monkeypatch.setattr(scoring, "decode_image", decode)
    files = [picture(shade) for shade in range(3)]
    batch = make_batch([((files[index % 3],), PROMPT, ["A red circle."]) for index in range(9)])
    score_batches(model, FACT_TYPES, [batch])
    assert (len(decoded), max(alive)) == (3, 2)  # the one before is still a name while the next one is opened


def test_a_batch_of_unusable_images_reaches_no_model(model: RewardModel) -> None:
    [[outcome]] = score_batches(model, FACT_TYPES, [make_batch([((b"no image",), PROMPT, ["A circle."])])])
    assert isinstance(outcome, ItemError)


def test_equal_images_travel_once() -> None:
    first, second = picture(1), picture(2)
    batch = make_batch([((first,), PROMPT, ["a"]), ((second, first), PROMPT, ["b"]), ((first,), PROMPT, ["c"])])
    assert [item.images for item in batch.items] == [(0,), (1, 0), (0,)]
    assert batch.images == [first, second]
    assert batch.file_bytes == len(first) + len(second)


def test_all_images_of_an_item_are_seen_in_order(model: RewardModel) -> None:
    shades, prompt = (3, 90), "Compare <image> with <image>."
    files = tuple(map(picture, shades))
    segments = ["A red circle. ", "A blue square."]
    batch = make_batch([(files, prompt, segments), (files[::-1], prompt, segments), (files[:1], PROMPT, segments)])
    both, swapped, first = score_batches(model, FACT_TYPES, [batch])[0]
    shown = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
    [expected] = model.score("existence", [ScoringItem(shown, prompt, segments)])
    np.testing.assert_allclose(both.probabilities["existence"], expected, atol=1e-5)
    assert not np.allclose(both.probabilities["existence"], swapped.probabilities["existence"], atol=1e-3)
    assert not np.allclose(both.probabilities["existence"], first.probabilities["existence"], atol=1e-3)


def test_a_prompt_with_other_places_than_images_is_not_scored(model: RewardModel) -> None:
    batch = make_batch([((picture(1), picture(2)), "What is in <image>?", ["A circle."])])
    [[outcome]] = score_batches(model, FACT_TYPES, [batch])
    assert isinstance(outcome, ItemError) and "1 place for an image" in str(outcome)


def test_the_probe_can_be_scored(model: RewardModel) -> None:
    [[outcome]] = score_batches(model, FACT_TYPES, [probe_batch()])
    assert isinstance(outcome, ItemVerdicts)
    assert {values.shape for values in outcome.probabilities.values()} == {(1, 3)}


def test_an_item_that_one_model_cannot_score_has_no_verdict() -> None:
    values, counts = np.zeros((1, 3), np.float32), np.ones((1, 2), np.float32)
    merged = merge_verdicts(
        [
            ScoredBatch({"a": "1"}, [ItemVerdicts({"a": values}), ItemVerdicts({"a": values})]),
            ScoredBatch({"b": "2"}, [ItemVerdicts({"b": values}, {"b": counts}), ItemError("x", "y")]),
        ]
    )
    assert merged.versions == {"a": "1", "b": "2"}
    both, failed = merged.outcomes
    assert isinstance(both, ItemVerdicts) and isinstance(failed, ItemError)
    assert set(both.probabilities) == {"a", "b"} and set(both.facts) == {"b"}


def test_the_combined_version_changes_with_any_model() -> None:
    assert combined_version({"a": "1", "b": "2"}) == combined_version({"b": "2", "a": "1"})
    assert combined_version({"a": "1", "b": "2"}) != combined_version({"a": "1", "b": "3"})


# OpenRLHF


SPECIAL = TOKENIZER.all_special_tokens


def test_the_response_is_what_follows_the_prompt() -> None:
    prompt = "<s>USER: <image>\nDescribe this image.\nASSISTANT:\n"
    query = prompt.replace("<image>", "<image>" * 9) + RESPONSE + "</s><pad><pad>"
    assert split_query(query, prompt, SPECIAL) == RESPONSE


def test_white_space_of_prompt_and_query_may_differ() -> None:
    assert split_query("<s> USER: hi ASSISTANT: A circle.</s>", "USER: hi\nASSISTANT:", SPECIAL) == "A circle."


@pytest.mark.parametrize("query", ["", "USER: ho ASSISTANT: A circle.", "USER: h"])
def test_a_query_without_its_prompt_is_refused(query: str) -> None:
    with pytest.raises(ItemError) as error:
        split_query(query, "USER: hi ASSISTANT:", SPECIAL)
    assert code_of(error) == "query_mismatch"


def test_labels_are_objects_or_their_json() -> None:
    label = {"image": "QUJD", "prompt": PROMPT, "id": 7}
    assert label_fields(label) == label_fields(json.dumps(label)) == (("QUJD",), PROMPT)
    assert label_fields({"images": ["QUJD", "QUJE"], "prompt": PROMPT}) == (("QUJD", "QUJE"), PROMPT)


@pytest.mark.parametrize(
    "label",
    [None, 3, [], "{", "cat.png", {"image": "QUJD"}, '{"image": 1, "prompt": "x"}', {"images": [], "prompt": "x"}],
)
def test_other_labels_are_refused(label: object) -> None:
    with pytest.raises(ItemError) as error:
        label_fields(label)
    assert code_of(error) == "invalid_label"


def test_the_wire_format_needs_no_torch(repository: Path) -> None:
    import subprocess
    import sys

    code = "import sys, fgaif_ray.serving.client; sys.exit(bool({'torch', 'transformers', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=repository, check=False).returncode == 0

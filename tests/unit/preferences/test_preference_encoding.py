"""Pairs as token ids: those that were sampled, and of each what is compared alone."""

from dataclasses import replace

import pytest
from support.preference_data import FALSE, GOOD, TRUE, WORSE, Said, labelled
from support.reward_helpers import CHECKPOINT

from fgaif_ray.preferences.encoding import encode_pairs
from fgaif_ray.preferences.pair import Continuation, Form, PreferencePair
from fgaif_ray.preferences.pairs import make_pairs
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.rewards.composition import RewardOptions
from fgaif_ray.vlm.front_end import FrontEnd, load_front_end

LONG: Said = [*GOOD[:1], ("A blue square is visible. ", TRUE), ("There is a green star.", TRUE)]
FALSE_LAST: Said = [*LONG[:2], ("There is a yellow ring.", FALSE)]


@pytest.fixture(scope="module")
def front_end() -> FrontEnd:
    return load_front_end(CHECKPOINT)


def pair(form: Form, one: Said, other: Said, front_end: FrontEnd | None) -> PreferencePair:
    rows = [labelled(name, said, front_end=front_end) for name, said in (("one", one), ("other", other))]
    [found] = make_pairs(rows, form, RewardOptions(weights=dict.fromkeys(FACT_TYPES, 1.0)), 0.5, 1)
    return found


def test_a_whole_response_is_what_was_sampled_with_its_end(front_end: FrontEnd) -> None:
    whole = pair("response", GOOD, WORSE, front_end)
    [encoded], reasons = encode_pairs([whole], front_end)
    assert (encoded.context, reasons) == ((), [])
    assert encoded.chosen == whole.chosen.response.token_ids
    assert encoded.rejected == whole.rejected.response.token_ids
    assert encoded.chosen[-1] == encoded.rejected[-1] == front_end.eos_token_id


def test_a_segment_follows_the_ids_of_its_context(front_end: FrontEnd) -> None:
    [encoded], _ = encode_pairs([pair("segment", LONG, FALSE_LAST, front_end)], front_end)
    assert front_end.decode(encoded.context) == "There is a red circle. A blue square is visible."
    assert front_end.decode((*encoded.context, *encoded.chosen)) == "".join(words for words, _ in LONG)
    assert front_end.decode((*encoded.context, *encoded.rejected)) == "".join(words for words, _ in FALSE_LAST)
    assert front_end.eos_token_id not in (*encoded.chosen, *encoded.rejected)


def test_what_follows_a_segment_is_not_learnt(front_end: FrontEnd) -> None:
    [ends], _ = encode_pairs([pair("segment", GOOD[:1], WORSE[:1], front_end)], front_end)
    [goes_on], _ = encode_pairs([pair("segment", LONG, WORSE, front_end)], front_end)
    assert ends == goes_on


def test_sampled_ids_are_not_tokenised_again(front_end: FrontEnd) -> None:
    whole = pair("response", GOOD, WORSE, front_end)
    ids = whole.chosen.response.token_ids or ()
    vocabulary = front_end.tokenizer.get_vocab()
    place = ids.index(vocabulary["\u0120red"])
    sampled = (*ids[:place], *(vocabulary[letter] for letter in "\u0120red"), *ids[place + 1 :])
    assert front_end.decode(sampled) == whole.chosen.response.text
    response = replace(whole.chosen.response, token_ids=sampled)
    changed = replace(whole, chosen=Continuation(response, 0, len(response.text), 2.0))
    [encoded], _ = encode_pairs([changed], front_end)
    assert encoded.chosen == sampled


def test_a_provided_response_is_tokenised_and_ended(front_end: FrontEnd) -> None:
    [provided], _ = encode_pairs([pair("response", GOOD, WORSE, None)], front_end)
    [sampled], _ = encode_pairs([pair("response", GOOD, WORSE, front_end)], front_end)
    assert provided == sampled
    [provided], _ = encode_pairs([pair("segment", LONG, FALSE_LAST, None)], front_end)
    [sampled], _ = encode_pairs([pair("segment", LONG, FALSE_LAST, front_end)], front_end)
    assert provided == sampled


def test_a_response_that_spells_a_special_token_is_left_out(front_end: FrontEnd) -> None:
    spelled: Said = [(f"An {front_end.processor.image_token} is there.", FALSE)]
    encoded, [reason] = encode_pairs([pair("response", GOOD, spelled, None)], front_end)
    assert encoded == [] and reason.startswith("dog.png: ")

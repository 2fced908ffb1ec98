"""Pairs from labelled responses, several to the same images and prompt.

Whole responses: they are ranked by their worth, and the best goes with the worst, the second with the second worst, and
so on while the difference is at least the margin. A better one says something true.

Segments (SENTINEL, arXiv 2507.12455, section 3): responses that read the same up to some segment go different ways
there. That context must be clean, without a label that is hallucinated or not to be used. The better continuation is
clean and says something true; the worse has a hallucinated label. They are ranked and put together in the same way.
What comes after the segment plays no part.

A text is in one pair of a context at most. Of the pairs of a prompt those with the largest margin are kept.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.preferences.pair import Continuation, Form, PreferencePair
from fgaif_ray.preferences.worth import response_worth, segment_worths
from fgaif_ray.records import CONSISTENT, HALLUCINATED, NOVELTY_TYPE, Feedback, Segment
from fgaif_ray.rewards.composition import RewardOptions
from fgaif_ray.storage import stages

Group = Sequence[Feedback]
"""The responses to one prompt about the same images."""


def load_pairs(config: Config, form: Form) -> list[PreferencePair]:
    """Make the pairs of a run, in the order of their ids.

    Raises:
        UserError: the responses have not been labelled, not with the types of the run, or there is no pair among them.
    """
    stages.require(config.run.dir, stages.FEEDBACK)
    rows = list(map(Feedback.from_row, storage.read_rows(storage.join(config.run.dir, stages.FEEDBACK))))
    dpo, options = config.align.dpo, RewardOptions(**config.align.reward.of_response)
    try:
        pairs = make_pairs(rows, form, options, dpo.margin, dpo.pairs_per_prompt)
    except ValueError as error:
        raise UserError(f"feedback/ was made with other fact types than run.fact_types: {error}.") from error
    if not pairs:
        raise UserError(_nothing(rows, form, config))
    return pairs


def make_pairs(
    rows: Iterable[Feedback], form: Form, options: RewardOptions, margin: float, most: int
) -> list[PreferencePair]:
    """Make pairs, in the order of their ids.

    Args:
        rows: labelled responses, with their sampled ids where lengths count.
        form: what is compared.
        options: of the reward that labels are worth.
        margin: least difference of worth.
        most: pairs of a prompt.

    Raises:
        ValueError: a segment has no label of one of the types.
    """
    groups: defaultdict[tuple[tuple[str, ...], str], list[Feedback]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.response.sample_id):
        groups[row.response.images, row.response.prompt].append(row)
    make = _MAKERS[form]
    found = []
    for group in groups.values():
        pairs = [pair for pair in make(group, options) if pair.margin >= margin and pair.margin > 0]
        found += sorted(pairs, key=lambda pair: (-pair.margin, pair.pair_id))[:most]
    return sorted(found, key=lambda pair: pair.pair_id)


def _of_responses(group: Group, options: RewardOptions) -> list[PreferencePair]:
    different = {row.response.text: row for row in reversed(group)}
    says_truth = {text: any(map(_says_truth, row.segments)) for text, row in different.items()}
    ranked = _ranked(
        [Continuation(row.response, 0, len(text), response_worth(row, options)) for text, row in different.items()]
    )
    better = [one for one in ranked if says_truth[one.response.text]]
    return _together("response", better, ranked)


def _of_segments(group: Group, options: RewardOptions) -> list[PreferencePair]:
    better: defaultdict[str, dict[str, Continuation]] = defaultdict(dict)
    worse: defaultdict[str, dict[str, Continuation]] = defaultdict(dict)
    for row in group:
        for segment, worth in zip(row.segments, segment_worths(row.segments, options), strict=True):
            one = Continuation(row.response, segment.start, segment.end, worth)
            if _is_clean(segment):
                if _says_truth(segment):
                    better[one.context].setdefault(one.text, one)
                continue
            if HALLUCINATED in segment.labels.values():
                worse[one.context].setdefault(one.text, one)
            break  # what follows has no clean context
    pairs = []
    for context in better.keys() & worse.keys():
        pairs += _together("segment", _ranked(better[context].values()), _ranked(worse[context].values()))
    return pairs


_MAKERS: Final[dict[Form, Callable[[Group, RewardOptions], list[PreferencePair]]]] = {
    "response": _of_responses,
    "segment": _of_segments,
}


def _ranked(continuations: Iterable[Continuation]) -> list[Continuation]:
    """The best first; equal ones by their samples' ids."""
    return sorted(continuations, key=lambda one: (-one.worth, one.response.sample_id))


def _together(form: Form, better: Sequence[Continuation], worse: Sequence[Continuation]) -> list[PreferencePair]:
    """The best with the worst and so on; where they are the same ones, until they meet."""
    pairs, used = [], set[int]()
    for chosen, rejected in zip(better, reversed(worse), strict=False):
        if not chosen.worth > rejected.worth or {id(chosen), id(rejected)} & used:
            break
        used |= {id(chosen), id(rejected)}
        pairs.append(PreferencePair(form, chosen, rejected))
    return pairs


def _is_clean(segment: Segment) -> bool:
    return not {HALLUCINATED, None} & {*segment.labels.values()}


def _says_truth(segment: Segment) -> bool:
    return any(code == CONSISTENT for name, code in segment.labels.items() if name != NOVELTY_TYPE)


def _nothing(rows: Group, form: Form, config: Config) -> str:
    prompts = len({(row.response.images, row.response.prompt) for row in rows})
    if prompts == len(rows):
        return (
            "There is one response to each image and prompt, and pairs are made of several: set "
            "sample.samples_per_prompt to 4, say, and sample and label again."
        )
    what = "responses" if form == "response" else "segments after the same clean context"
    advice = f"lower align.dpo.margin ({config.align.dpo.margin:g})"
    if form == "segment" and not config.sample.shared_prefixes:
        advice += ", or set sample.shared_prefixes to true"
    return (
        f"No two {what} differ enough among {len(rows)} labelled responses to {prompts} prompts: {advice}, or raise "
        "sample.samples_per_prompt."
    )

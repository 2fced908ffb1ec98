"""What `jobs.label` does about verification beside its plan: what workers are given, the second pass, the metrics."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from actors.labelling.checks import CHECKS_FOLDER, VerificationCheck
from actors.labelling.thresholds import find_thresholds
from fgaif_ray import storage
from fgaif_ray.audit.control_items import load_control_items, measure
from fgaif_ray.audit.control_items.asked import CONTROL_ITEMS_FOLDER, AskedControlItem
from fgaif_ray.config import Config
from fgaif_ray.errors import find_user_error
from fgaif_ray.progress import Progress

if TYPE_CHECKING:
    from actors.labelling.verifier import Verification

EXPECTED_ANSWER_MASS: Final = 0.5
"""A verifier that gives less to yes and no together does not answer the question it was asked."""


def check_verifiers(config: Config) -> None:
    """Find out without engines whether the verifiers can be used.

    Raises:
        UserError: a checkpoint or a prompt cannot.
    """
    from actors.labelling.fact_checker import check_verifier
    from fgaif_ray.vlm.checkpoint import check_vision_model

    for verifier in filter(None, (config.label.verifier, config.label.second_verifier)):
        check_vision_model(verifier.model, config.policy.allow_untested)
        check_verifier(verifier, config.data.chat_template_kwargs)


def prepare(config: Config, partial: str, rejected_partial: str) -> "Verification":
    """What workers are given; thresholds that are not known yet are calibrated.

    Raises:
        UserError: a labelled set, a verifier or a file of control items cannot be used.
    """
    from actors.labelling.verifier import Verification
    from fgaif_ray.shapes.control_items import scene_control_items
    from fgaif_ray.sources import load_truth

    truth = load_truth(config) if config.label.control_items.per_block else None
    known = scene_control_items(truth, config.run.seed) if truth else ()
    images = config.data.images_per_prompt
    control_items = load_control_items(config.label.control_items, config.run.type_names, known, images)
    return Verification(
        config=config.label,
        partial=partial,
        rejected_partial=rejected_partial,
        thresholds=find_thresholds(config),
        second_thresholds=find_thresholds(config, "second_verifier")
        if config.label.second_verifier is not None
        else None,
        control_items=control_items,
        fact_types=config.run.types,
        budget=config.data.pixel_budget,
        template=config.data.chat_template_kwargs,
        images_per_prompt=config.data.images_per_prompt,
    )


def verify_again(config: Config, verification: "Verification") -> None:
    """Have the second verifier, where there is one, go over the labelled parts that it has not seen.

    Raises:
        UserError: it cannot be used. The parts that are done stay done.
    """
    if config.label.second_verifier is None:
        return
    from actors.cluster.connect import connect
    from actors.labelling.second_verifier import parts_left

    left = parts_left(verification.partial)
    if not left:
        return
    with connect(config), Progress("verify again", sum(rows for _, rows in left), "responses") as progress:
        from actors.labelling.plan import verify_again as plan

        try:
            for counts in plan(verification, left):
                progress.advance(counts.done)
        except Exception as error:
            raise (find_user_error(error) or error) from error


def verification_figures(folder: str, thresholds: Mapping[str, float]) -> dict[str, Any]:
    """The metrics of all attempts at a stage: answer mass, prefix cache and control items, JSON-serialisable.

    Args:
        folder: of the stage.
        thresholds: of the first verifier.
    """
    sums = {second: VerificationCheck(second=second) for second in (False, True)}
    for check in map(VerificationCheck.from_row, storage.read_rows(storage.join(folder, CHECKS_FOLDER))):
        sums[check.second] = sums[check.second].merge(check)
    first, second = sums[False], sums[True]
    asked = map(AskedControlItem.from_row, storage.read_rows(storage.join(folder, CONTROL_ITEMS_FOLDER)))
    control_items = measure(asked, thresholds)
    return {
        "verifier_answer_mass": first.answer_mass / first.questions if first.questions else None,
        "prefix_cache": _prefix_cache(first),
        "canaries": control_items if control_items["false_asked"] or control_items["true_asked"] else None,
        "thresholds": dict(thresholds),
    } | ({"second_prefix_cache": _prefix_cache(second)} if second.questions else {})


def _prefix_cache(check: VerificationCheck) -> dict[str, Any]:
    asked, cached = check.prompt_tokens, check.cached_tokens
    return {"prompt_tokens": asked, "cached_tokens": cached, "hit_rate": cached / asked if asked else None}


def summary_lines(config: Config, figures: Mapping[str, Any]) -> Iterable[str]:
    """What a person should know of the metrics of ``verification_figures`` and of the second verifier."""
    mass, cache, control_items = figures["verifier_answer_mass"], figures["prefix_cache"], figures["canaries"]
    if mass is not None and mass < EXPECTED_ANSWER_MASS:
        yield (
            f"label: the verifier gives yes and no only {mass:.0%} of its answers' probability: its verdicts are weak, "
            "check label.verifier.model and label.verifier.prompt."
        )
    if cache["hit_rate"] is not None:
        yield (
            f"label: the prefix cache held {cache['hit_rate']:.0%} of the verifier's {cache['prompt_tokens']:,} prompt "
            "tokens."
        )
    second = figures.get("second_verifier")
    if second is not None:
        shares = ", ".join(
            f"{name} {second[name]['share']:.1%}" for name in config.run.type_names if second[name]["share"] is not None
        )
        yield f"label: the two verifiers disagree on {second['all']['disagreements']} facts ({shares})."
    if control_items is not None and control_items["gullibility"]["value"] is not None:
        yield _control_item_line(config.label.control_items.limit, control_items)


def _control_item_line(limit: float, control_items: Mapping[str, Any]) -> str:
    share, (low, high) = control_items["gullibility"]["value"], control_items["gullibility"]["interval"]
    said = f"{share:.0%} [{low:.0%}, {high:.0%}] of {control_items['false_asked']} known-false control items"
    if share > limit:
        return (
            f"label: the verifier says yes to {said}, more than label.control_items.limit ({limit:.0%}): do not trust "
            "its labels before an audit, and try another label.verifier.model or prompt."
        )
    accepted = control_items["true_accepted"]["value"]
    also = "" if accepted is None else f", and to {accepted:.0%} of the known-true ones"
    return f"label: the verifier says yes to {said}{also}."

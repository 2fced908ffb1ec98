"""What follows when every response is labelled or rejected: metrics, the official form, and both published stages."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import fsspec

from actors.labelling.reuse import manifest_entries
from actors.labelling.verification import summary_lines, verification_figures
from actors.labelling.verifier import Verification
from fgaif_ray import storage
from fgaif_ray.calls.ledger import LEDGER_FILE, read_ledger
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.feedback.deduplicate import deduplicate
from fgaif_ray.feedback.labels import LabelledResponse, write_official
from fgaif_ray.feedback.metrics import FeedbackMetrics, TrueLabels
from fgaif_ray.feedback.pending import distinct, identities_of
from fgaif_ray.feedback.verdicts import Disagreements
from fgaif_ray.progress import say, say_rejected
from fgaif_ray.records import ABSENT, Feedback
from fgaif_ray.shapes.oracle import label_claims, read_claims
from fgaif_ray.sources import load_truth

METRICS_FILE: Final = "metrics.json"
OFFICIAL_FILE: Final = "official.jsonl"


def publish(
    config: Config,
    stage: storage.Stage,
    rejected_stage: storage.Stage,
    total: int,
    verification: Verification,
    seconds: float,
) -> None:
    """Write the metrics and the official form, then publish both stages.

    Rejected rows come first, so that they are there for every reader that finds the labelled ones.

    Args:
        config: the configuration.
        stage: of the labelled rows, begun.
        rejected_stage: of the rejected ones, begun or published.
        total: responses that there are.
        verification: what workers were given.
        seconds: that this attempt took.

    Raises:
        UserError: no response could be labelled.
    """
    # Rejected rows may have been published by an attempt that ended a moment later.
    rejected_rows = rejected_stage.folder if rejected_stage.is_complete() else rejected_stage.partial
    if not rejected_stage.is_complete():
        deduplicate([stage.partial, rejected_rows])
    labelled_ids, rejected_ids = identities_of(stage.partial), identities_of(rejected_rows)
    labelled, rejected = len(labelled_ids), len(rejected_ids)
    if labelled + rejected != total or len(distinct(labelled_ids, rejected_ids)) != total:
        raise RuntimeError(f"{total} responses gave {labelled} labelled and {rejected} rejected ones")
    reasons = Counter(row["reason"].partition(":")[0] for row in storage.read_rows(rejected_rows, ["reason"]))
    if not labelled:
        causes = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        raise UserError(
            f"None of the {total} responses could be labelled ({causes}): change label.extractor or label.verifier, or "
            f"delete {stage.partial} and {rejected_stage.partial} to try the same again."
        )
    ledger, types = read_ledger(config.run.dir), config.run.type_names
    figures, disagreements = FeedbackMetrics(types, _true_labels(config)), Disagreements(types)
    with fsspec.open(storage.join(stage.partial, OFFICIAL_FILE), "w", encoding="utf-8") as official:
        for feedback in map(Feedback.from_row, storage.read_rows(stage.partial)):
            figures.add(feedback)
            disagreements.add(feedback)
            write_official(official, [_official(feedback, types)])
    metrics = figures.to_dict() | {
        "rejected": {"total": rejected, "by_reason": dict(reasons)},
        "extraction": ledger.figures(),
        **verification_figures(stage.partial, verification.thresholds),
        **({} if verification.second_thresholds is None else {"second_verifier": disagreements.to_dict()}),
        "seconds": round(seconds, 1),
    }
    storage.write_json(storage.join(stage.partial, LEDGER_FILE), ledger.to_dict(config.label.extractor.price))
    storage.write_json(storage.join(stage.partial, METRICS_FILE), metrics)
    if not rejected_stage.is_complete():
        rejected_stage.publish({"rows": rejected, "by_reason": dict(reasons)})
    stage.publish({"rows": labelled, "rejected": rejected, **manifest_entries(config)})
    for line in summary_lines(config, metrics):
        say(line)
    rejections = (
        (row["image"], row["reason"]) for row in storage.read_rows(rejected_stage.folder, ["image", "reason"])
    )
    say_rejected("label", rejections, rejected, rejected_stage.folder)
    say(f"label: {labelled} responses labelled, {rejected} rejected, in {stage.folder}.")


def _official(feedback: Feedback, types: Sequence[str]) -> LabelledResponse:
    return LabelledResponse(
        images=feedback.response.images,
        segments=tuple(segment.text for segment in feedback.segments),
        # The official form has no word for a label that is not to be used.
        labels=tuple(tuple(segment.labels[name] or ABSENT for name in types) for segment in feedback.segments),
    )


def _true_labels(config: Config) -> TrueLabels | None:
    """The oracle of the embedded world, where the images come from it."""
    truth = load_truth(config)
    if truth is None:
        return None

    def labels(feedback: Feedback) -> Sequence[Mapping[str, int]] | None:
        scene = truth.get(feedback.response.image)
        if scene is None:
            return None
        spans = [(segment.start, segment.end) for segment in feedback.segments]
        return [label_claims(scene, claims) for claims in read_claims(feedback.response.text, spans)]

    return labels

"""Label the responses with AI feedback (FGAIF sections 3.1 and 3.2): sub-sentences, atomic facts, verdicts, labels.

Reads `responses/`, writes `feedback/` (rows, `metrics.json`, `ledger.json`, `official.jsonl`) and `feedback_rejected/`
(rows that could not be labelled, with the reason) into the run's folder, and `calibration/` where thresholds are
calibrated. An interrupted run goes on where it was; finished calls are not repeated.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import fsspec

from fgaif_ray import storage
from fgaif_ray.calls.ledger import LEDGER_FILE, LedgerTotals, read_ledger
from fgaif_ray.calls.unusable import describe_failures
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.feedback.deduplicate import deduplicate
from fgaif_ray.feedback.label_sources import feedback_stages
from fgaif_ray.feedback.labels import LabelledResponse, write_official
from fgaif_ray.feedback.metrics import FeedbackMetrics, TrueLabels
from fgaif_ray.feedback.overrides import Overrides
from fgaif_ray.feedback.pending import Pending, distinct, find_pending, identities_of
from fgaif_ray.feedback.verdicts import Disagreements
from fgaif_ray.progress import Progress, say, say_rejected
from fgaif_ray.records import ABSENT
from fgaif_ray.storage import stages
from jobs import label_audit, label_calibration, label_cost
from jobs.cli import find_user_error, main
from jobs.label_reuse import can_reuse, loses_nothing, manifest_entries, reuse
from jobs.label_verification import check_verifiers, prepare, summary_lines, verification_figures, verify_again
from jobs.plan import plan_mode

if TYPE_CHECKING:
    from actors.engine.openai_server import OpenAIServer
    from actors.labelling.extraction import Endpoint
    from actors.labelling.verifier import Verification

MODES: Final = (*label_cost.MODES, *label_audit.MODES, *label_calibration.MODES, plan_mode("label", "label, second"))
METRICS_FILE: Final = "metrics.json"
OFFICIAL_FILE: Final = "official.jsonl"
SERVER_LOG: Final = "extraction-server.log"
STOP_GRACE_S: Final = 10.0
"""Added to the time limit of a call when the job stops and calls are under way."""


def start_extractor_server(config: Config) -> "OpenAIServer | None":
    """Start the server of ``label.extractor.serve_model`` and return at once, so that it is up when ``run`` needs it.

    Returns:
        The server, to be passed to ``run`` and stopped by the caller; None where an endpoint is configured or the
        responses of this run are labelled already.
    """
    from actors.engine.openai_server import start_openai_server

    extractor = config.label.extractor
    if extractor.serve_model is None:
        return None
    if storage.read_manifest(config.run.dir, stages.RESPONSES) is not None:
        stage, _ = feedback_stages(config)
        if stage.is_complete() or can_reuse(config, stage):
            return None
    folder = config.run.dir.removeprefix("file://") if storage.is_local(config.run.dir) else "logs"
    return start_openai_server(
        extractor.serve_model,
        extractor.model,
        extractor.engine,
        os.path.join(folder, SERVER_LOG),
        extractor.compact_json,
    )


@storage.writes_run("label")
def run(config: Config, server: "OpenAIServer | None" = None) -> None:
    """Label every response that has no label yet and publish ``feedback/`` and ``feedback_rejected/``.

    Args:
        config: the configuration.
        server: a server from ``start_extractor_server``; it is not stopped here. Without one, this run starts its own
            where it needs one, and stops it.

    Raises:
        UserError: responses are missing, or the endpoint or a model cannot be used. What was done so far is kept.
    """
    started = time.monotonic()
    stage, rejected_stage = feedback_stages(config)
    if stage.is_complete():
        say(f"label: {stage.folder} is up to date.")
        return
    responses = storage.join(stage.run, stages.RESPONSES)
    Overrides.load(config.label, config.run.type_names).check(storage.read_rows(responses, ["sample_id", "response"]))
    _begin(stage, rejected_stage, overwrite=config.run.overwrite or loses_nothing(config, stage))
    verification = prepare(config, stage.partial, rejected_stage.partial)
    reuse(config, stage, rejected_stage, verification)
    pending = pending_responses(config)
    if pending.rows:
        _label(config, verification, pending, server)
    verify_again(config, verification)
    _publish(config, stage, rejected_stage, pending.total, verification, time.monotonic() - started)


def _rejected_rows(rejected_stage: storage.Stage) -> str:
    """Where this stage's rejected rows are: they are published a moment before the labelled ones."""
    return rejected_stage.folder if rejected_stage.is_complete() else rejected_stage.partial


def _begin(stage: storage.Stage, rejected_stage: storage.Stage, overwrite: bool) -> None:
    """Make the stages ready."""
    stage.begin(overwrite=overwrite)
    if not rejected_stage.is_complete():
        rejected_stage.begin(overwrite=True)  # rejected rows go with the labelled ones


def pending_responses(config: Config) -> Pending:
    """The responses that an earlier attempt has neither labelled nor rejected; writes nothing.

    Raises:
        UserError: the responses have not been sampled.
    """
    done = []
    for stage in feedback_stages(config):
        if stage.is_complete():
            done.append(identities_of(stage.folder))
        elif stage.is_begun():
            done.append(identities_of(stage.partial))
    return find_pending(storage.join(config.run.dir, stages.RESPONSES), distinct(*done), config.label.batch_size)


@contextmanager
def _endpoint(config: Config, server: "OpenAIServer | None", first: str | None) -> "Iterator[Endpoint]":
    """The endpoint to call; a server that is started here is stopped when the block is left.

    An endpoint that somebody else runs is tried with ``first``, the first response with something to ask.
    """
    from pydantic import SecretStr

    from actors.labelling.extraction import Endpoint, ask_about, check_endpoint

    extractor = config.label.extractor
    if first is None:
        yield Endpoint(None, None)
        return
    if extractor.serve_model is None:
        key = os.environ.get(extractor.api_key_env)
        endpoint = Endpoint(extractor.base_url, SecretStr(key) if key else None)
        check_endpoint(extractor, endpoint, config.run.types)
        ask_about(first, extractor, endpoint, config.run.dir, config.run.types)
        yield endpoint
        return
    own = start_extractor_server(config) if server is None else None
    used = server or own
    assert used is not None
    try:
        say("label: waiting for the extraction server (about 20 s, longer for large models)")
        used.wait_ready()
        yield Endpoint(used.base_url, SecretStr(used.api_key))
    finally:
        if own is not None:
            own.stop()


def _label(config: Config, verification: "Verification", pending: Pending, server: "OpenAIServer | None") -> None:
    """Label the pending rows."""
    from actors.cluster.connect import connect
    from actors.labelling.extraction import first_unanswered

    check_verifiers(config)  # better found wrong before servers and engines start
    first = first_unanswered(config.label.extractor, config.run.dir, pending, config.run.types)
    stopped, give_up = None, float("inf")
    unavailable: list[str] = []
    with (
        _endpoint(config, server, first) as endpoint,
        connect(config),
        Progress("label", pending.total, "responses", initial=pending.total - pending.rows) as progress,
    ):
        from actors.labelling.plan import label_responses

        try:
            for counts in label_responses(config, pending, endpoint, verification):
                if counts["fatal"] is not None:
                    if stopped is None:
                        # Calls that are under way are paid: the workers have stopped and get the time to end them.
                        stopped = counts["fatal"]
                        give_up = time.monotonic() + config.label.extractor.timeout_s + STOP_GRACE_S
                    if time.monotonic() > give_up:
                        break
                    continue
                progress.advance(counts["labelled"] + counts["rejected"])
                unavailable += counts["unavailable"]
        except Exception as error:
            raise (find_user_error(error) or error) from error
    say(_spent(config, read_ledger(config.run.dir)))
    if stopped is not None:
        raise UserError(stopped)
    if unavailable:
        raise UserError(describe_failures(unavailable, pending.total, config.label.extractor.section))


def _spent(config: Config, ledger: LedgerTotals) -> str:
    """One line about what extraction has taken so far."""
    price = config.label.extractor.price
    text = (
        f"label: extraction has taken {ledger.calls} calls, {ledger.prompt_tokens} prompt and "
        f"{ledger.completion_tokens} completion tokens"
    )
    if price is not None:
        text += f", {ledger.money(price):.4g} {price.currency}"
    return f"{text}; {ledger.cache_hits} answers were there already."


def _publish(
    config: Config,
    stage: storage.Stage,
    rejected_stage: storage.Stage,
    total: int,
    verification: "Verification",
    seconds: float,
) -> None:
    """Write the figures and the official form, then publish both stages.

    Rejected rows come first, so that they are there for every reader that finds the labelled ones.
    """
    rejected_rows = _rejected_rows(rejected_stage)
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
    figures, disagreements = FeedbackMetrics(_true_labels(config), types), Disagreements(types)
    with fsspec.open(storage.join(stage.partial, OFFICIAL_FILE), "w", encoding="utf-8") as official:
        for row in storage.read_rows(stage.partial):
            figures.add(row)
            disagreements.add(row)
            write_official(official, [_official(row, types)])
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
    rejections = storage.read_rows(rejected_stage.folder, ["image", "reason"])
    say_rejected("label", rejections, rejected, rejected_stage.folder)
    say(f"label: {labelled} responses labelled, {rejected} rejected, in {stage.folder}.")


def _official(row: Mapping[str, Any], types: Sequence[str]) -> LabelledResponse:
    return LabelledResponse(
        image=row["image"],
        segments=tuple(segment["text"] for segment in row["segments"]),
        # The official form has no word for a label that is not to be used.
        labels=tuple(tuple(segment["labels"][name] or ABSENT for name in types) for segment in row["segments"]),
    )


def _true_labels(config: Config) -> TrueLabels | None:
    """The oracle of the embedded world, where the images come from it."""
    from fgaif_ray.shapes.oracle import label_claims, read_claims
    from fgaif_ray.sources import load_truth

    truth = load_truth(config)
    if truth is None:
        return None

    def labels(row: Mapping[str, Any]) -> Sequence[Mapping[str, int]] | None:
        scene = truth.get(row["image"])
        if scene is None:
            return None
        spans = [(segment["start"], segment["end"]) for segment in row["segments"]]
        return [label_claims(scene, claims) for claims in read_claims(row["response"], spans)]

    return labels


if __name__ == "__main__":
    sys.exit(main("label", __doc__, run, modes=MODES))

"""Label the responses with AI feedback (FGAIF sections 3.1 and 3.2): segments, atomic facts, verdicts, labels.

Reads `responses/`, writes `feedback/` (rows, `metrics.json`, `ledger.json`, `official.jsonl`) and `feedback_rejected/`
(rows that could not be labelled, with the reason) into the run's folder, and `calibration/` where thresholds are
calibrated. An interrupted run goes on where it was; finished calls are not repeated.

Examples:
    fgaif label --config my.yaml --dry-run
    fgaif label --config my.yaml --set label.extractor.budget=20
"""

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from actors.labelling.reuse import can_reuse, loses_nothing, reuse
from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.feedback.label_sources import feedback_stages
from fgaif_ray.feedback.overrides import Overrides
from fgaif_ray.feedback.pending import Pending, distinct, find_pending, identities_of
from fgaif_ray.progress import say
from fgaif_ray.storage import stages
from jobs.cli import ConfigOption, OverwriteOption, SetOption, main, read_config

if TYPE_CHECKING:
    from actors.engine.openai_server import OpenAIServer


def start_extractor_server(config: Config) -> "OpenAIServer | None":
    """Start the server of ``label.extractor.serve_model`` and return at once, so that it is up when ``run`` needs it.

    Returns:
        The server, to be passed to ``run`` and stopped by the caller; None where an endpoint is configured or the
        responses of this run are labelled already.
    """
    from actors.labelling.run import start_server

    if config.label.extractor.serve_model is None:
        return None
    if storage.read_manifest(config.run.dir, stages.RESPONSES) is not None:
        stage, _ = feedback_stages(config)
        if stage.is_complete() or can_reuse(config, stage):
            return None
    return start_server(config)


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

    from actors.labelling.publish import publish
    from actors.labelling.run import label_pending
    from actors.labelling.verification import prepare, verify_again

    responses = storage.join(stage.run, stages.RESPONSES)
    human = Overrides.load(config.label, config.run.type_names)
    rows = storage.read_rows(responses, ["sample_id", "response"])
    human.check(((row["sample_id"], row["response"]) for row in rows), config.data.language)
    stage.begin(overwrite=config.run.overwrite or loses_nothing(config, stage))
    if not rejected_stage.is_complete():
        rejected_stage.begin(overwrite=True)  # rejected rows go with the labelled ones
    verification = prepare(config, stage.partial, rejected_stage.partial)
    reuse(config, stage, rejected_stage, verification)
    pending = pending_responses(config)
    if pending.rows:
        label_pending(config, verification, pending, server)
    verify_again(config, verification)
    publish(config, stage, rejected_stage, pending.total, verification, time.monotonic() - started)


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


def command(
    config: ConfigOption,
    overrides: SetOption = None,
    overwrite: OverwriteOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show calls, tokens and money, and do nothing")] = False,
) -> None:
    """What `fgaif label` does."""
    settings = read_config(config, overrides, overwrite)
    if dry_run:
        from actors.labelling.cost import show_cost

        show_cost(settings, pending_responses(settings))
    else:
        run(settings)


if __name__ == "__main__":
    sys.exit(main("label"))

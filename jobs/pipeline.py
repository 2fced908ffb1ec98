"""The whole loop: sample, label, train_rewards, serve_rewards, align, evaluate, report.

Where the policy learns from preferences, reward models are trained for the report alone, and are not served.

Finished stages are skipped in seconds, so the same command goes on after an interruption.

Examples:
    fgaif pipeline --config configs/shapes.yaml
    fgaif pipeline --config my.yaml --set run.dir=runs/second --set run.seed=1
"""

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from fgaif_ray.config import Config, recorded_config
from fgaif_ray.progress import say
from fgaif_ray.storage import stages
from fgaif_ray.storage.run_lock import writes_run
from jobs.cli import ConfigOption, OverwriteOption, SetOption, main, read_config

if TYPE_CHECKING:
    from actors.cluster.peak_memory import PeakMemory


class _Stages:
    """The stages of one call of the pipeline."""

    def __init__(self, run_dir: str, memory: "PeakMemory") -> None:
        self._run_dir, self._memory = run_dir, memory
        self.worked = False
        """Whether a stage had something to do."""
        self.published = False
        """Whether a stage has been published."""

    def missing(self, folder: str) -> bool:
        """Whether the stage that writes ``folder`` is still to be done."""
        from fgaif_ray.storage import read_manifest

        return read_manifest(self._run_dir, folder) is None

    def __call__(self, name: str, folder: str, work: Callable[[], object]) -> None:
        """Run a job and record its wall time, unless it found its folder finished and returned at once."""
        from fgaif_ray.report.summary import record_memory, record_timing
        from fgaif_ray.storage import read_manifest

        say(f"== {name}")
        before, started = read_manifest(self._run_dir, folder), time.monotonic()
        worked_before, self.worked = self.worked, True  # also where it ends in an error
        self._memory.take_lap_gib()
        work()
        seconds = time.monotonic() - started
        if before is not None and read_manifest(self._run_dir, folder) == before:
            self.worked = worked_before
            say(f"== {name}: done before")
            return
        self.published = True
        record_timing(self._run_dir, name, seconds)
        if (peak := self._memory.take_lap_gib()) > 0:
            record_memory(self._run_dir, name, peak)
        say(f"== {name}: {seconds:.0f} s")


def _check_models(config: Config, stage: _Stages) -> None:
    """Find out what is wrong with a model before Ray starts and any stage is done."""
    from actors.cluster.connect import cluster_address
    from fgaif_ray.vlm.checkpoint import check_checkpoint, check_vision_model

    label = config.label
    verifiers = [label.verifier, *([] if label.second_verifier is None else [label.second_verifier])]
    models = {stages.FEEDBACK: [verifier.model for verifier in verifiers], stages.POLICY: [config.policy.model]}
    if cluster_address(config) is None:  # the nodes of a cluster may have it where this one has not
        models[stages.REWARDS] = [config.rewards.backbone]
    for model in dict.fromkeys(model for folder, used in models.items() if stage.missing(folder) for model in used):
        check_vision_model(model, config.policy.allow_untested)
    if label.extractor.serve_model is not None and stage.missing(stages.FEEDBACK):
        check_checkpoint(label.extractor.serve_model, sees_images=False)


def _run_stages(config: Config, stage: _Stages) -> None:
    """Everything but the report, in one Ray session."""
    from actors.cluster.connect import connect
    from actors.rewards import service as reward_service
    from fgaif_ray import sources
    from fgaif_ray.storage import stages
    from jobs import align, evaluate, label, sample, train_rewards

    _check_models(config, stage)
    with connect(config):
        stage("images", stages.IMAGES, lambda: sources.prepare_images(config))
        server = label.start_extractor_server(config) if stage.missing(stages.FEEDBACK) else None
        try:
            stage("sample", stages.RESPONSES, lambda: sample.run(config))
            stage("label", stages.FEEDBACK, lambda: label.run(config, server))
        finally:
            if server is not None:
                server.stop()
        stage("train_rewards", stages.REWARDS, lambda: train_rewards.run(config))
        try:
            if stage.missing(stages.POLICY) and not config.align.learns_from_preferences:
                folders = stages.reward_folders(config)
                stage("serve_rewards", "service", lambda: reward_service.deploy(config, folders))
            stage("align", stages.POLICY, lambda: align.run(config))
        finally:
            reward_service.shutdown(config.serve.app_name)
        stage("evaluate", stages.EVALUATION, lambda: evaluate.run(config))


@writes_run("pipeline")
def run(config: Config) -> None:
    """Run every stage of ``config`` and write ``summary.json`` and ``report.html``."""
    from actors.cluster.peak_memory import PeakMemory
    from fgaif_ray import storage
    from fgaif_ray.report import summary
    from jobs import report

    run_dir = config.run.dir
    settings = storage.join(run_dir, "config.yaml")
    recorded = recorded_config(config).encode()
    if not storage.exists(settings):
        storage.write_bytes(settings, recorded)
    started = time.monotonic()
    with PeakMemory() as memory:
        stage = _Stages(run_dir, memory)
        try:
            _run_stages(config, stage)
        finally:
            if stage.published:
                storage.write_bytes(settings, recorded)
            if stage.worked:
                summary.record_call(run_dir, time.monotonic() - started, memory.peak_gib)
    storage.write_bytes(settings, recorded)  # only now: settings that are refused leave those of the run
    stage("report", stages.REPORT, lambda: report.run(config))
    figures = summary.build_summary(run_dir, config.run.type_names)
    say("")
    say(summary.summary_table(figures))
    if figures["calls"] is not None:
        taken = figures["calls"]
        calls = "one call" if taken["calls"] == 1 else f"{taken['calls']} calls"
        say(f"\n{taken['seconds']:.0f} s in {calls}, peak memory {taken['peak_memory_gib']:.1f} GiB")
    say(f"Report: {storage.join(run_dir, 'report.html')}")


def command(config: ConfigOption, overrides: SetOption = None, overwrite: OverwriteOption = False) -> None:
    """What `fgaif pipeline` does."""
    run(read_config(config, overrides, overwrite))


if __name__ == "__main__":
    sys.exit(main("pipeline"))

"""The whole loop: sample, label, train_rewards, serve_rewards, align, evaluate, report.

Finished stages are skipped in seconds, so the same command goes on after an interruption.
"""

import sys
import time
from collections.abc import Callable

from fgaif_ray.config import Config, dump_config
from fgaif_ray.progress import say
from jobs.cli import main


def _stage(config: Config, name: str, folder: str, work: Callable[[], object]) -> None:
    """Run a job and record its wall time, unless it found its folder finished and returned at once."""
    from fgaif_ray.storage import read_manifest
    from fgaif_ray.summary import record_timing

    say(f"== {name}")
    before, started = read_manifest(config.run.dir, folder), time.monotonic()
    work()
    seconds = time.monotonic() - started
    if before is not None and read_manifest(config.run.dir, folder) == before:
        say(f"== {name}: done before")
        return
    record_timing(config.run.dir, name, seconds)
    say(f"== {name}: {seconds:.0f} s")


def run(config: Config) -> None:
    """Run every stage of ``config`` in one Ray session and write ``summary.json`` and ``report.html``."""
    from actors import reward_service
    from actors.cluster import connect
    from actors.memory import PeakMemory
    from fgaif_ray import sources, storage, summary
    from fgaif_ray.records import FACT_TYPES
    from jobs import align, evaluate, label, report, sample, train_rewards

    run_dir = config.run.dir
    storage.write_bytes(storage.join(run_dir, "config.yaml"), dump_config(config).encode())

    def missing(name: str) -> bool:
        return storage.read_manifest(run_dir, name) is None

    started = time.monotonic()
    with connect(config), PeakMemory() as memory:
        _stage(config, "images", sources.STAGE, lambda: sources.prepare_images(config))
        server = label.start_extractor_server(config) if missing("feedback") else None
        try:
            _stage(config, "sample", "responses", lambda: sample.run(config))
            _stage(config, "label", "feedback", lambda: label.run(config, server))
        finally:
            if server is not None:
                server.stop()
        _stage(config, "train_rewards", "rewards", lambda: train_rewards.run(config))
        try:
            if missing("policy"):
                folders = {kind: storage.join(run_dir, "rewards", kind) for kind in FACT_TYPES}
                _stage(config, "serve_rewards", "service", lambda: reward_service.deploy(config, folders))
            _stage(config, "align", "policy", lambda: align.run(config))
        finally:
            reward_service.shutdown()
        _stage(config, "evaluate", "evaluation", lambda: evaluate.run(config))
    total = {"seconds": round(time.monotonic() - started, 1), "peak_memory_gib": round(memory.peak_gib, 2)}
    figures = summary.build_summary(run_dir, {"last_run": total})
    _stage(config, "report", "report", lambda: report.run(config))
    say("")
    say(summary.summary_table(figures))
    say(f"\n{total['seconds']:.0f} s, peak memory {total['peak_memory_gib']:.1f} GiB")
    say(f"Report: {storage.join(run_dir, 'report.html')}")


if __name__ == "__main__":
    sys.exit(main("pipeline", __doc__, run))

"""The labelling job over more responses than it gets done in the time that is asked for."""

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil
import yaml

from benchmarks.endpoint import Endpoint
from benchmarks.labelling_memory import ANNOTATOR, PART_ROWS, ROOT
from benchmarks.soak_samples import Sampler
from fgaif_ray import storage
from fgaif_ray.records import RESPONSES_SCHEMA
from fgaif_ray.shapes.render import render
from fgaif_ray.shapes.scenes import draw_scene
from fgaif_ray.storage import stages

IMAGES: Final = 500
MOST_PER_SECOND: Final = 120.0
"""Responses: more than two cores verify."""
LATENCY_S: Final = 0.1
START_S: Final = 1200.0
END_S: Final = 120.0
ENGINE: Final = {
    "dtype": "float32",
    "max_model_len": 512,
    "max_num_seqs": 128,
    "kv_cache_gib": 0.5,
    "enforce_eager": True,
    "num_cpus": 1,
    "threads": 1,
}


class JobFailedError(Exception):
    """The job ended before its time, with the end of what it said."""


def write_run(run: Path, rows: int, endpoint: str) -> Path:
    """Publish responses of two segments each, no two of them the same; returns the file of the configuration."""
    images = run / "images"
    images.mkdir(parents=True)
    for index in range(IMAGES):
        render(draw_scene("train", index, 0)).save(images / f"{index}.png")
    stage = storage.Stage(str(run), stages.RESPONSES, "f")
    stage.begin()
    constant = {"prompt": "Describe this image.", "finish_reason": "stop", "model": "policy"}
    for start in range(0, rows, PART_ROWS):
        part = [
            constant
            | {
                "sample_id": str(index),
                "image": str(images / f"{index % IMAGES}.png"),
                "image_sha256": str(index % IMAGES),
                "response": f"There is dog number {index}. Cat {index} is black.",
            }
            for index in range(start, min(start + PART_ROWS, rows))
        ]
        storage.write_part(stage.partial, part, RESPONSES_SCHEMA, f"{start:07d}")
    stage.publish({"rows": rows})
    config = {
        "run": {"dir": str(run)},
        "ray": {"num_cpus": 4, "object_store_gib": 0.3},
        "data": {"path": str(images)},
        "policy": {"model": "policy"},
        "label": {
            "batch_size": 125,
            "extractor": {
                "base_url": endpoint,
                "model": "m",
                "prompt": "extract-short-v2",
                "requests_per_minute": 1e9,
            },
            "verifier": {"model": str(ANNOTATOR), "engine": ENGINE},
        },
        "rewards": {"backbone": str(ANNOTATOR)},
    }
    path = run / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def soak_labelling(folder: Path, seconds: float, sampler_of: Callable[[int], Sampler]) -> tuple[Sampler, Counter[str]]:
    """Label for some seconds from the first labelled block on, then interrupt the job.

    Args:
        folder: of the run and of the job's log.
        seconds: of labelling.
        sampler_of: makes the sampler of a process.

    Raises:
        JobFailedError: the job ended before, but for having labelled all there is.
    """
    run, log = folder / "run", folder / "label.log"
    with Endpoint(LATENCY_S) as url:
        config = write_run(run, int(seconds * MOST_PER_SECOND), url)
        command = [sys.executable, "-m", "jobs.label", "--config", str(config)]
        with log.open("ab") as output:
            job = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT, start_new_session=True)
        family: dict[int, psutil.Process] = {}
        try:
            with sampler_of(job.pid) as sampler:
                _wait(job, log, family, START_S, lambda: bool(storage.list_parts(_labelled(run))))
                sampler.begin()
                end = time.monotonic() + seconds
                _wait(job, log, family, seconds + END_S, lambda: time.monotonic() >= end)
        finally:
            left = _end(job, family)
    rows = sum(len(storage.read_part(part, ["sample_id"])) for part in storage.list_parts(_labelled(run)))
    return sampler, Counter({"labelled": rows, "left behind": left})


def _labelled(run: Path) -> str:
    folders = [storage.join(str(run), f"{stages.FEEDBACK}{suffix}") for suffix in (".partial", "")]
    return next((one for one in folders if storage.list_parts(one)), folders[0])


def _wait(
    job: subprocess.Popen[bytes],
    log: Path,
    family: dict[int, psutil.Process],
    longest_s: float,
    is_over: Callable[[], bool],
) -> None:
    """Wait until something holds, or the job has labelled everything; notes the processes that the job has."""
    deadline = time.monotonic() + longest_s
    while not is_over():
        if job.poll() is not None:
            if job.returncode == 0:
                return
            raise JobFailedError(f"labelling ended with {job.returncode}: {log.read_text()[-2000:]}")
        if time.monotonic() > deadline:
            raise JobFailedError(f"labelling did not get on in {longest_s:.0f} s: {log.read_text()[-2000:]}")
        with suppress(psutil.NoSuchProcess):
            family |= {one.pid: one for one in psutil.Process(job.pid).children(recursive=True)}
        time.sleep(1.0)


def _end(job: subprocess.Popen[bytes], family: dict[int, psutil.Process]) -> int:
    """Interrupt the job as `ray job stop` does, and end what it leaves; the number of processes that it left."""
    if job.poll() is None:
        job.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            job.wait(END_S)
    _, left = psutil.wait_procs(list(family.values()), timeout=10)
    for one in left:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    if job.poll() is None:
        job.kill()
        job.wait()
    return len(left)

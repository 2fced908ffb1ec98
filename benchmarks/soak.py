"""An hour of service and an hour of labelling: memory, descriptors, threads and disk stay as they are.

    python -m benchmarks.soak [--minutes 60] [--only service labelling] [--folder FOLDER [--report]]

The real reward service, with untrained models of the embedded world, is asked at half of what it can do, and now and
then for what it has to refuse. The real labelling job takes extraction from an endpoint on loopback and verifies with
the embedded world's annotator on vLLM. Every few seconds all processes are looked at that belong to it, and the folder
with Ray's logs and temporary files: memory is what the processes hold together (PSS), disk does not count results.
After the warm-up a line is put through the medians of twelve windows. A measure is flat if its growth cannot be told
from chance, or is less than 1 % of its level in an hour (or than the numbers in `soak_samples.ALLOWED`).

`samples-NAME.jsonl` in the folder holds every sample as soon as it is taken, and `--report` prints what those of a run
say that was killed. The last line is one JSON object: for
service and labelling the measures with ``flat``, ``level``, ``per_hour`` and ``interval``, and counts of what was done.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.soak_labelling import JobFailedError, soak_labelling
from benchmarks.soak_samples import ALLOWED, Sample, Sampler, describe, read_samples, trend
from benchmarks.soak_service import soak_service
from fgaif_ray.serving.client import RewardServiceError

ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_NO_USAGE_STATS": "1",
}
LOADS: Final[dict[str, Callable[[Path, float, Callable[[int], Sampler]], tuple[Sampler, Counter[str]]]]] = {
    "service": soak_service,
    "labelling": soak_labelling,
}
WARM_UP_S: Final = 600.0
"""At most; of a shorter run a third."""


def working_folder(folder: Path) -> Path:
    """Where Ray of this process and of those that it starts from now on puts its logs; made where it is missing."""
    (folder / "ray").mkdir(parents=True, exist_ok=True)
    os.environ["RAY_TMPDIR"] = str(folder)
    return folder / "ray"


def report(name: str, samples: Sequence[Sample]) -> dict[str, Any]:
    """Print what was seen of a load, and return what goes into the last line.

    Raises:
        ValueError: there are too few samples.
    """
    warm_up_s = min(WARM_UP_S, max((one.at_s for one in samples), default=0.0) / 3)
    trends = [trend(samples, measure, warm_up_s) for measure in ALLOWED]
    print("\n".join(describe(name, samples, trends, warm_up_s)), flush=True)
    return {one.measure: one.figures() for one in trends}


def soak(name: str, folder: Path, minutes: float, interval_s: float) -> dict[str, Any]:
    """Put one load on; returns what goes into the last line."""
    work = working_folder(folder / name)
    log = samples_file(folder, name)
    sampler, counts = LOADS[name](folder / name, 60 * minutes, lambda pid: Sampler(pid, work, log, interval_s))
    found = report(name, sampler.samples)
    print("  " + ", ".join(f"{what}: {count:,}" for what, count in counts.items()), flush=True)
    return found | dict(counts)


def samples_file(folder: Path, name: str) -> Path:
    """Where the samples of a load are kept."""
    return folder / f"samples-{name}.jsonl"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the loads one after the other; the exit status is 1 where one of them broke."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="of each load")
    parser.add_argument(
        "--only", nargs="+", choices=LOADS, default=list(LOADS), metavar="NAME", help="service, labelling"
    )
    parser.add_argument("--interval", type=float, default=5.0, help="seconds from one sample to the next")
    parser.add_argument("--folder", type=Path, help="keep samples, logs and results here; a short path (Ray's sockets)")
    parser.add_argument("--report", action="store_true", help="run nothing, print what the samples in --folder say")
    options = parser.parse_args(arguments)
    if options.report and options.folder is None:
        parser.error("--report needs the --folder of a run")
    if (
        not options.report
        and options.folder
        and (there := [one for one in options.only if (options.folder / one).exists()])
    ):
        parser.error(f"{options.folder} has a run of {', '.join(there)}: choose another folder")
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="soak", dir="/tmp"))
    found: dict[str, Any] = {}
    try:
        for name in options.only:
            if options.report:
                found[name] = report(name, read_samples(samples_file(folder, name)))
            else:
                found[name] = soak(name, folder, options.minutes, options.interval)
    except (JobFailedError, RewardServiceError, ValueError) as error:
        print(error, file=sys.stderr)
    except KeyboardInterrupt:
        command = f"python -m benchmarks.soak --report --only {name} --folder {folder}"
        print(f"Interrupted: `{command}` prints what was seen.", file=sys.stderr)
        return 130
    if options.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(found))
    return 0 if set(found) == set(options.only) else 1


if __name__ == "__main__":
    sys.exit(main())

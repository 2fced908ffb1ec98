"""Speed of labelling, as ratios that are measured in one run.

    python -m benchmarks.labelling [--only extract verify segments memory] [--quick]

The last line is one JSON object; what was not measured is null.

* ``verify_over_vllm``: rows per second that the job verifies, over bare ``vllm.LLM.generate`` on the same prompts;
* ``prefix_hit_rate``: share of the verifier's prompt tokens that its prefix cache holds;
* ``extract_over_ideal_C``: calls per second against an endpoint that answers after 100 ms, over C / 0.1 s;
* ``segments_per_second``: segments that are cut on one core;
* ``rss_100k_over_1k``: peak memory of the job's own process for 100,000 responses, over that for 1,000.
"""

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

KEYS: Final = (
    "verify_over_vllm",
    "prefix_hit_rate",
    "extract_over_ideal_8",
    "extract_over_ideal_64",
    "extract_over_ideal_256",
    "segments_per_second",
    "rss_100k_over_1k",
)
ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_NO_USAGE_STATS": "1",
}
CALLS_OF_ONE_WORKER: Final = 32
"""In flight, of a latency of 100 ms: about what one process can keep up with."""
RESPONSES: Final = 2000
ROUNDS: Final = 3

Figures = dict[str, float | None]


def measure_extraction(quick: bool) -> Figures:
    """Calls per second for each number of calls in flight."""
    from benchmarks.labelling_extraction import CONCURRENCIES, SECONDS, endpoint_rate, extraction_rate

    seconds = 1.0 if quick else SECONDS
    most = max(CONCURRENCIES)
    print(
        f"endpoint alone, asked by a bare client with {most} connections: {endpoint_rate(most, seconds):,.0f} calls/s"
    )
    figures: Figures = {}
    for concurrency in CONCURRENCIES:
        workers = min(max(1, concurrency // CALLS_OF_ONE_WORKER), os.cpu_count() or 1)
        rate = extraction_rate(concurrency, workers, 1 if quick else ROUNDS, seconds)
        print(
            f"extraction with {concurrency} calls in flight, {workers} workers: {rate.per_second:,.0f} of "
            f"{rate.ideal:,.0f} calls/s, {rate.cpu_ms:.2f} ms of processor time a call"
        )
        figures[f"extract_over_ideal_{concurrency}"] = rate.per_second / rate.ideal
    return figures


def measure_verification(quick: bool) -> Figures:
    """Rows per second of the job and of bare vLLM."""
    from benchmarks.labelling_verification import verification_rates

    found = verification_rates(rows=96 if quick else 352, rounds=1 if quick else ROUNDS)
    print(
        f"verification: {found.job_rows_per_second:.1f} rows/s through the job, {found.bare_rows_per_second:.1f} by "
        f"bare vLLM, {found.facts} facts a round; prefix hit rate {found.prefix_hit_rate:.3f}, bare "
        f"{found.bare_prefix_hit_rate:.3f}"
    )
    return {"verify_over_vllm": found.ratio, "prefix_hit_rate": found.prefix_hit_rate}


def measure_segments(quick: bool) -> Figures:
    """Sub-sentences per second, the best of some rounds."""
    from fgaif_ray.segments import split_segments
    from fgaif_ray.shapes.captions import POLICY_ERRORS, write_caption
    from fgaif_ray.shapes.scenes import draw_scene

    texts = [
        write_caption(draw_scene("train", index, 0), POLICY_ERRORS, random.Random(index)) for index in range(RESPONSES)
    ]
    count = sum(len(split_segments(text)) for text in texts)
    best = float("inf")
    for _ in range(1 if quick else ROUNDS):
        start = time.perf_counter()
        for text in texts:
            split_segments(text)
        best = min(best, time.perf_counter() - start)
    print(f"segments: {count:,} of {len(texts):,} responses, {count / best:,.0f}/s on one core")
    return {"segments_per_second": count / best}


def measure_memory(quick: bool) -> Figures:
    """Peak memory of the job for few and for many responses."""
    from benchmarks.endpoint import Endpoint
    from benchmarks.labelling_memory import peak_rss_mib

    few, many = 1_000, 10_000 if quick else 100_000
    with tempfile.TemporaryDirectory() as folder, Endpoint(0.0) as url:
        peaks = [peak_rss_mib(Path(folder) / str(rows), rows, url) for rows in (few, many)]
    print(f"memory of the job: {peaks[0]:.0f} MiB for {few:,} responses, {peaks[1]:.0f} MiB for {many:,}")
    return {f"rss_{many // 1000}k_over_{few // 1000}k": peaks[1] / peaks[0]}


PARTS: Final[dict[str, Callable[[bool], Figures]]] = {
    "segments": measure_segments,
    "extract": measure_extraction,
    "verify": measure_verification,
    "memory": measure_memory,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="measure these parts alone")
    parser.add_argument("--quick", action="store_true", help="one short round of each, 10,000 responses for memory")
    options = parser.parse_args(arguments)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    figures: Figures = dict.fromkeys(KEYS)
    for name in options.only:
        figures |= PARTS[name](options.quick)
    print(json.dumps({key: None if value is None else round(value, 4) for key, value in figures.items()}))


if __name__ == "__main__":
    main()

"""Memory of the labelling job's own process: flat, however many rows there are."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import yaml
from PIL import Image

from fgaif_ray import storage
from fgaif_ray.records import RESPONSES_SCHEMA

ROOT: Final = Path(__file__).resolve().parent.parent
ANNOTATOR: Final = ROOT / "fgaif_ray" / "shapes" / "checkpoints" / "annotator"
PART_ROWS: Final = 1000
RESPONSE: Final = "... " * 100
"""Without words: every stage works, no model is asked."""
MEASURE: Final = """
import re, sys
from pathlib import Path
from fgaif_ray.config import load_config
from jobs import label
label.run(load_config(sys.argv[1]))
print(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""
"""Not `ru_maxrss`, which a process takes over from the one that started it, however large that has become."""


def peak_rss_mib(run: Path, rows: int, endpoint: str) -> float:
    """Peak resident memory, in MiB, of a job that labels so many responses without words.

    Args:
        run: folder that is made for the run.
        rows: number of responses, in thousands.
        endpoint: URL of an OpenAI-compatible endpoint; it is asked for nothing but its list of models.
    """
    run.mkdir()
    Image.new("RGB", (8, 8)).save(run / "image.png")
    stage = storage.Stage(str(run), "responses", "f")
    stage.begin()
    constant = {"image": str(run / "image.png"), "image_sha256": "0", "prompt": "Describe this image."}
    for start in range(0, rows, PART_ROWS):
        part = [
            constant | {"sample_id": str(index), "response": RESPONSE, "finish_reason": "stop", "model": "policy"}
            for index in range(start, start + PART_ROWS)
        ]
        storage.write_part(stage.partial, part, RESPONSES_SCHEMA, f"{start:06d}")
    stage.publish({"rows": rows})
    engine = {"dtype": "float32", "max_model_len": 256, "kv_cache_gib": 0.25, "enforce_eager": True, "threads": 1}
    config = {
        "run": {"dir": str(run)},
        "ray": {"num_cpus": 4, "object_store_gib": 0.3},
        "data": {"path": str(run)},
        "policy": {"model": "policy"},
        "label": {
            "extractor": {"base_url": endpoint, "model": "m", "prompt": "extract-short-v2"},
            "verifier": {"model": str(ANNOTATOR), "engine": engine},
        },
        "rewards": {"backbone": str(ANNOTATOR)},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-c", MEASURE, str(run / "config.yaml")]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    manifest = storage.read_manifest(str(run), "feedback")
    assert manifest is not None and manifest["rows"] == rows
    return int(result.stdout.splitlines()[-1]) / 1024

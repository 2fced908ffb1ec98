"""Memory of the labelling job's own process: flat, however many rows there are."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from fgaif_ray import storage
from fgaif_ray.records import RESPONSES_SCHEMA
from jobs import label

ANNOTATOR = Path(label.__file__).parent.parent / "fgaif_ray" / "shapes" / "checkpoints" / "annotator"
FEW, MANY = 1_000, 100_000
LARGEST_GROWTH = 1.25
MEASURE = """
import json, resource, sys
from fgaif_ray.config import load_config
from jobs import label
label.run(load_config(sys.argv[1]))
print(json.dumps({"peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        data = b'{"object": "list", "data": []}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def peak_rss_mib(run: Path, rows: int, endpoint: str) -> float:
    """Peak of a job that labels so many responses without words: every stage works, no model is asked."""
    run.mkdir()
    Image.new("RGB", (8, 8)).save(run / "image.png")
    stage = storage.Stage(str(run), "responses", "f")
    stage.begin()
    constant = {"image": str(run / "image.png"), "image_sha256": "0", "prompt": "Describe this image."}
    for start in range(0, rows, 1000):
        part = [
            constant | {"sample_id": str(index), "response": "... " * 100, "finish_reason": "stop", "model": "policy"}
            for index in range(start, start + 1000)
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
            "extractor": {"base_url": endpoint, "model": "m", "prompt": "extract-short-v1"},
            "verifier": {"model": str(ANNOTATOR), "engine": engine},
        },
        "rewards": {"backbone": str(ANNOTATOR)},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-c", MEASURE, str(run / "config.yaml")]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert storage.read_manifest(str(run), "feedback")["rows"] == rows
    return float(json.loads(result.stdout.splitlines()[-1])["peak_rss_mib"])


@pytest.mark.proof
@pytest.mark.ray
@pytest.mark.vllm
def test_the_driver_takes_as_much_memory_for_a_hundred_times_the_rows(tmp_path: Path, endpoint: str) -> None:
    few, many = (peak_rss_mib(tmp_path / str(rows), rows, endpoint) for rows in (FEW, MANY))
    print(f"peak RSS of the driver: {few:.0f} MiB for {FEW} rows, {many:.0f} MiB for {MANY} rows")
    assert many < LARGEST_GROWTH * few

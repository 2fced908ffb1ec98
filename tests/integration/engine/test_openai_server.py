"""vLLM's own OpenAI server as a child process: it answers, and it never outlives the job."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import openai
import pytest
from support.paths import ROOT

from actors.engine.openai_server import start_openai_server
from fgaif_ray.config import EngineConfig
from fgaif_ray.errors import UserError
from fgaif_ray.fact_types import DEFAULT
from fgaif_ray.feedback.extraction import response_format
from fgaif_ray.feedback.prompts import load_prompt
from fgaif_ray.records import FACT_TYPES

pytestmark = pytest.mark.vllm
EXTRACTOR = ROOT / "fgaif_ray" / "shapes" / "checkpoints" / "extractor"
ENGINE = EngineConfig(
    dtype="float32", max_model_len=256, max_num_seqs=64, kv_cache_gib=0.25, enforce_eager=True, threads=1
)


def group_members(leader: int) -> list[str]:
    """Living processes of a process group."""
    listing = subprocess.run(["ps", "-A", "-o", "pgid=,stat=,pid="], capture_output=True, text=True, check=True)
    rows = [line.split() for line in listing.stdout.splitlines()]
    return [pid for group, state, pid in rows if int(group) == leader and not state.startswith("Z")]


def test_own_server_answers_the_client_and_is_gone_after_stop(tmp_path: Path) -> None:
    log = str(tmp_path / "server.log")
    server = start_openai_server(str(EXTRACTOR), "extractor", ENGINE, log, compact_json=False)
    said = "A star is visible. It is red."
    question = load_prompt("extract-short-v2", DEFAULT).render(context=said, segment="It is red.")
    try:
        server.wait_ready(240)
        with openai.OpenAI(base_url=server.base_url, api_key=server.api_key, max_retries=0) as client:
            answer = client.chat.completions.create(
                model="extractor",
                messages=[{"role": "user", "content": question}],
                max_completion_tokens=64,
                temperature=0,
                response_format=response_format("segment", FACT_TYPES),
            )
            facts = json.loads(answer.choices[0].message.content or "")
            assert facts == {"existence": [], "attribute": ["The star is red."], "relation": []}
            with pytest.raises(openai.AuthenticationError):
                client.with_options(api_key="wrong").models.list()
        assert server.api_key not in Path(f"/proc/{server.process.pid}/cmdline").read_text()
    finally:
        server.stop()
    assert group_members(server.process.pid) == []


def test_server_that_cannot_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    server = start_openai_server(str(EXTRACTOR), "extractor", EngineConfig(), str(tmp_path / "server.log"))
    server.process.terminate()
    server.process.wait()
    (tmp_path / "server.log").write_text("the last words\n")
    with pytest.raises(UserError, match="the last words"):
        server.wait_ready()
    server.stop()


def test_server_ends_when_the_process_that_started_it_is_killed(tmp_path: Path) -> None:
    script = (
        "import time; from actors.engine.openai_server import start_openai_server;"
        "from fgaif_ray.config import EngineConfig;"
        f"server = start_openai_server({str(EXTRACTOR)!r}, 'extractor', EngineConfig(), {str(tmp_path / 'log')!r});"
        "print(server.process.pid, flush=True); time.sleep(600)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 60
    while group_members(pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert group_members(pid) == []

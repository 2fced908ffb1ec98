"""The guard on a real Ray cluster, between an endpoint on loopback and a deployed reward service."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from support.fake_openai import FakeOpenAI, Reply
from support.guarded import ANSWERS, ENDPOINT_KEY, GUARD_TOKEN, answering, ask, chunks, client_of
from support.metrics_endpoint import exported_names, scrape_until
from support.reward_helpers import save_reward_models, service_config
from support.reward_service_helpers import TOKEN

from actors import metrics
from actors.guard import service as guard_service
from actors.rewards import service as reward_service
from fgaif_ray.config import guard_tree
from fgaif_ray.errors import UserError

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def endpoint() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(answering(*ANSWERS)) as server:
        server.models = Reply(body={"object": "list", "data": [{"id": "m", "object": "model"}]})
        yield server


@pytest.fixture(scope="module")
def guard(ray_cluster: dict[str, Any], endpoint: FakeOpenAI, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The root of a deployed guard, below the path /guard of the reward service's Serve."""
    folder = tmp_path_factory.mktemp("run")
    folders = save_reward_models(folder / "rewards")
    secrets = {"FGAIF_REWARD_TOKEN": TOKEN, guard_service.GUARD_TOKEN_VARIABLE: GUARD_TOKEN}
    os.environ.update(secrets)
    try:
        info = reward_service.deploy(service_config(folder, placement="shared"), folders)
        tree = guard_tree(
            [f"guard.upstream={endpoint.url}", f"guard.rewards={info.url}", "guard.port=0", "guard.route_prefix=/guard"]
        )
        yield guard_service.deploy(guard_service.guard_settings(tree, tree.guard, info.url, ENDPOINT_KEY))
    finally:
        for name in secrets:
            del os.environ[name]
        guard_service.shutdown("guard")
        reward_service.shutdown()


def test_openai_s_client_gets_answers_with_verdicts(guard: str, endpoint: FakeOpenAI) -> None:
    client = client_of(guard)
    [choice] = client.chat.completions.create(**ask()).choices
    assert choice.message.content == ANSWERS[0]
    assert len(choice.model_extra["fgaif"]["segments"]) == 2
    assert endpoint.authorizations[-1] == f"Bearer {ENDPOINT_KEY}"
    assert [one.id for one in client.models.list()] == ["m"]


def test_a_stream_goes_through_the_proxy(guard: str, endpoint: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """The endpoint writes the second segment once the first one has been read, so that they are judged in turn."""
    read = threading.Event()

    def held() -> Iterator[str]:
        first, second, *rest = chunks(ANSWERS[0], len(ANSWERS[0]) * 3 // 5)
        yield from (first, second)
        assert read.wait(60)
        yield from rest

    monkeypatch.setattr(endpoint, "reply", lambda *_: Reply(parts=held()))
    pieces = []
    for one in client_of(guard).chat.completions.create(**ask(stream=True)):
        pieces.append(one.choices[0])
        read.set()
    assert "".join(one.delta.content or "" for one in pieces) == ANSWERS[0]
    assert len(pieces) == 3 and pieces[-1].model_extra["fgaif"]["segments"]


@pytest.mark.parametrize("stream", [False, True])
def test_curl_works(guard: str, stream: bool, tmp_path: Path) -> None:
    body = tmp_path / "body.json"
    body.write_text(json.dumps(ask(stream=stream)))
    command = ["curl", "--silent", "--no-buffer", f"{guard}/v1/chat/completions", "--data-binary", f"@{body}"]
    headers = ["-H", "Content-Type: application/json", "-H", f"Authorization: Bearer {GUARD_TOKEN}"]
    done = subprocess.run([*command, *headers], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.endswith("data: [DONE]\n\n") if stream else json.loads(done.stdout)["choices"][0]["fgaif"]


def test_errors_have_openai_s_form_behind_the_proxy(guard: str) -> None:
    answer = httpx2.post(f"{guard}/v1/chat/completions", json=ask())
    assert (answer.status_code, answer.json()["error"]["type"]) == (401, "authentication_error")
    assert httpx2.get(f"{guard}/ready", timeout=60).json() == {"status": "ready"}


def test_a_path_that_is_taken_is_refused(guard: str, endpoint: FakeOpenAI) -> None:
    tree = guard_tree([f"guard.upstream={endpoint.url}", "guard.port=0", "guard.app_name=other"])
    with pytest.raises(UserError, match=r"guard\.route_prefix"):
        guard_service.deploy(guard_service.guard_settings(tree, tree.guard, guard, None))


def test_its_requests_and_segments_are_exported(guard: str) -> None:
    client_of(guard).chat.completions.create(**ask())
    recorded = (metrics.GUARD_REQUESTS, metrics.GUARD_REQUEST_DURATION, metrics.GUARD_SEGMENTS)
    assert scrape_until(name for metric in recorded for name in exported_names(metric))


def test_no_secret_gets_into_the_logs(guard: str, ray_cluster: dict[str, Any]) -> None:
    client_of(guard).chat.completions.create(**ask())
    files = [path for path in Path(ray_cluster["session_dir"], "logs").rglob("*") if path.is_file()]
    secrets = (ENDPOINT_KEY.encode(), GUARD_TOKEN.encode())
    assert files and [path for path in files if any(secret in path.read_bytes() for secret in secrets)] == []


@pytest.mark.slow
def test_the_command_serves_a_runs_reward_models_beside_the_guard(
    endpoint: FakeOpenAI, tmp_path: Path, repository: Path
) -> None:
    save_reward_models(tmp_path / "rewards")
    config = service_config(tmp_path, placement="shared").model_dump(mode="json")
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "jobs.guard", "--upstream", endpoint.url, "--mode", "strip", "--config", str(file)]
    changes = ["guard.port=0", "guard.nothing_left=Nothing.", "guard.threshold=0", "ray.num_cpus=4"]
    process = subprocess.Popen(
        [*command, *(word for change in changes for word in ("--set", change))],
        cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, guard_service.GUARD_TOKEN_VARIABLE: GUARD_TOKEN, "OPENAI_API_KEY": ENDPOINT_KEY},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if "guard: strip before" in line:
                break
        else:
            raise AssertionError("".join(lines))
        url = lines[-1].partition(" at ")[2].partition("/v1")[0]
        [choice] = client_of(url).chat.completions.create(**ask()).choices
        assert choice.message.content == "Nothing." and len(choice.model_extra["fgaif"]["cut"]) == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
        assert "guard: stopped" in process.stdout.read()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()

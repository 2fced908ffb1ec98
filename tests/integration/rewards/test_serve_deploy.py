"""`serve deploy configs/serve-rewards.yaml` on a head that a person started."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from support.listening import documented_sockets, listening_sockets
from support.local_head import DEADLINE_S, Head, free_ports, started_head
from support.reward_helpers import CHECKPOINT, PROMPT, RESPONSE, offline_model, picture, save_reward_models
from support.reward_service_helpers import TOKEN, assert_scores, offline_scores
from support.serve_application import application_of

from fgaif_ray.serving.client import RewardClient, RewardServiceError, reward_item
from fgaif_ray.serving.wire import RewardItem, ScoredResponse


@pytest.fixture(scope="module")
def head(repository: Path) -> Iterator[Head]:
    with started_head(repository, num_cpus=2, FGAIF_REWARD_TOKEN=TOKEN) as head:
        yield head


@pytest.fixture(scope="module")
def port() -> int:
    return free_ports(20)[-1]  # the head takes the first of them


def serve(head: Head, repository: Path, *arguments: str) -> None:
    command = [str(Path(sys.executable).with_name("serve")), *arguments, "--address", head.address]
    done = subprocess.run(
        command, cwd=repository, env=head.environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def application(repository: Path, run: Path, port: int) -> dict[str, Any]:
    """The shipped application, for a run of small models."""
    options = application_of(repository)
    options["http_options"]["port"] = port
    changed = {
        "run.dir": str(run),
        "run.fact_types": "[existence,attribute,relation]",
        "align.reward.weights": "{existence: 1, attribute: 1, relation: 2}",
        "align.reward.unit": "segment",
        "rewards.backbone": CHECKPOINT,
        "serve.max_replicas": 1,
    }
    kept = [entry for entry in options["applications"][0]["args"]["set"] if entry.partition("=")[0] not in changed]
    options["applications"][0]["args"]["set"] = [*kept, *(f"{name}={value}" for name, value in changed.items())]
    return options


def score_with_another_version(client: RewardClient, item: RewardItem, before: str | None) -> ScoredResponse:
    """The reward of the item, once all models that answer are those that the service names, and not those of before."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        try:
            if client.is_ready() and (version := client.models().model_version) != before:
                [scored] = client.score([item])
                if scored.model_version == version:
                    return scored
        except RewardServiceError:
            pass  # Serve itself answers for an application that is not there yet
        time.sleep(0.3)
    raise TimeoutError("the application did not get ready")


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_is_served_and_another_one_takes_its_place(
    head: Head, port: int, repository: Path, tmp_path: Path
) -> None:
    file = tmp_path / "serve-rewards.yaml"

    def deploy(run: str) -> None:
        file.write_text(yaml.safe_dump(application(repository, tmp_path / run, port)))
        serve(head, repository, "deploy", str(file))

    folders = [save_reward_models(tmp_path / run / "rewards", seed) for seed, run in enumerate(("first", "second"))]
    item = reward_item(picture(), PROMPT, RESPONSE)
    with RewardClient(f"http://127.0.0.1:{port}", token=TOKEN) as client:
        deploy("first")
        first = score_with_another_version(client, item, before=None)
        deploy("second")
        second = score_with_another_version(client, item, before=first.model_version)
    for scored, of_run in zip((first, second), folders, strict=True):
        assert_scores(scored, offline_scores(offline_model(of_run), picture(), RESPONSE))


@pytest.mark.ray
@pytest.mark.slow
def test_a_head_listens_where_the_documentation_says(head: Head, repository: Path) -> None:
    """With the application of the test before."""
    found = listening_sockets(head.environment["RAY_TMPDIR"])
    assert ("ServeReplica", "every interface") in found
    assert found - documented_sockets(repository, "on a cluster") == set()


@pytest.mark.ray
@pytest.mark.slow
def test_an_application_that_serve_opens_to_the_network_is_refused_on_a_head_without_a_token(
    head: Head, port: int, repository: Path, tmp_path: Path
) -> None:
    """Without a host in its options Serve listens on 0.0.0.0, whatever the application's own configuration says."""
    save_reward_models(tmp_path / "run" / "rewards")
    options = application(repository, tmp_path / "run", port)
    assert options["http_options"].pop("host") == "127.0.0.1"
    file = tmp_path / "open.yaml"
    file.write_text(yaml.safe_dump(options))
    serve(head, repository, "shutdown", "--yes")  # where Serve listens cannot be changed while it runs
    serve(head, repository, "deploy", str(file))
    deadline = time.monotonic() + DEADLINE_S
    while True:
        answer = httpx2.get(f"{head.address}/api/serve/applications/", timeout=60)
        deployed = answer.json().get("applications", {}).get("rewards", {})
        if deployed.get("status") == "DEPLOY_FAILED":
            break
        assert time.monotonic() < deadline and deployed.get("status") != "RUNNING"
        time.sleep(0.3)
    assert "serve.host=0.0.0.0 is open to the network, and so is the Ray cluster at" in deployed["message"]
    assert "RAY_AUTH_MODE=token" in deployed["message"]

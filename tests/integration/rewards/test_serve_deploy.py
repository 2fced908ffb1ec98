"""`serve deploy configs/serve-rewards.yaml` on a head that a person started."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from support.local_head import DEADLINE_S, Head, free_ports, started_head
from support.reward_helpers import CHECKPOINT, PROMPT, RESPONSE, offline_model, picture, save_reward_models
from support.reward_service_helpers import TOKEN, assert_scores, offline_scores
from support.serve_application import application_of

from fgaif_ray.serving.client import RewardClient, RewardServiceError, reward_item
from fgaif_ray.serving.wire import RewardItem, ScoredResponse


def deploy(head: Head, repository: Path, file: Path) -> None:
    command = [str(Path(sys.executable).with_name("serve")), "deploy", str(file), "--address", head.address]
    done = subprocess.run(
        command, cwd=repository, env=head.environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


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
def test_a_run_is_served_and_another_one_takes_its_place(repository: Path, tmp_path: Path) -> None:
    port = free_ports(20)[-1]  # the head takes the first of them
    file = tmp_path / "serve-rewards.yaml"

    def write(run: str) -> None:
        options = application_of(repository)
        options["http_options"]["port"] = port
        changed = {
            "run.dir": str(tmp_path / run),
            "rewards.backbone": CHECKPOINT,
            "serve.port": port,
            "serve.max_replicas": 1,
            "serve.placement": "shared",  # fewer processes to start
        }
        kept = [entry for entry in options["applications"][0]["args"]["set"] if entry.partition("=")[0] not in changed]
        options["applications"][0]["args"]["set"] = [*kept, *(f"{name}={value}" for name, value in changed.items())]
        file.write_text(yaml.safe_dump(options))

    folders = [save_reward_models(tmp_path / run / "rewards", seed) for seed, run in enumerate(("first", "second"))]
    item = reward_item(picture(), PROMPT, RESPONSE)
    with (
        started_head(repository, num_cpus=2, FGAIF_REWARD_TOKEN=TOKEN) as head,
        RewardClient(f"http://127.0.0.1:{port}", token=TOKEN) as client,
    ):
        write("first")
        deploy(head, repository, file)
        first = score_with_another_version(client, item, before=None)
        write("second")
        deploy(head, repository, file)
        second = score_with_another_version(client, item, before=first.model_version)
    for scored, of_run in zip((first, second), folders, strict=True):
        assert_scores(scored, offline_scores(offline_model(of_run), picture(), RESPONSE))

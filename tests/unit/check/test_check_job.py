"""`fgaif check` and `POST /v1/check`, with real reward models in this process and behind HTTP."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from PIL import Image
from support.local_gateway import TOKEN, WEIGHTS, LocalScorer, local_gateway, served
from support.reward_helpers import RESPONSE, picture, service_config

from fgaif_ray.fact_types import DEFAULT
from fgaif_ray.rewards.composition import RewardOptions
from fgaif_ray.serving.client import RewardClient, check_item
from fgaif_ray.serving.wire import DEFAULT_PROMPT
from jobs.cli import main


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with reward models, and an image."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "image.png").write_bytes(picture())
    return folder


@pytest.fixture(scope="module")
def url(run: Path) -> Iterator[str]:
    with served(local_gateway(LocalScorer(run / "rewards"), RewardOptions(weights=WEIGHTS))) as url:
        yield url


@pytest.fixture(scope="module")
def arguments(run: Path, url: str) -> list[str]:
    """Of a check in this process."""
    return [str(run / "image.png"), RESPONSE, "--rewards", str(run)]


def result(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What `--json` prints."""
    assert main("check", [*arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def odds(found: dict[str, Any]) -> list[float]:
    return [
        share for segment in found["segments"] for one in segment["types"].values() for share in one["probabilities"]
    ]


def test_a_service_and_this_process_find_the_same(
    arguments: list[str], url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = result(arguments, capsys), result([*arguments[:2], "--url", url], capsys)
    assert odds(here) == pytest.approx(odds(there), abs=1e-4) and here["score"] == pytest.approx(
        there["score"], abs=1e-4
    )


def test_the_url_may_come_from_the_environment(
    arguments: list[str], url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FGAIF_REWARD_URL", url)
    assert len(result(arguments[:2], capsys)["segments"]) == 2


def test_a_configuration_names_the_reward_models_of_its_run(
    arguments: list[str], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(service_config(Path("/nowhere")).model_dump(mode="json")))
    found = result([*arguments[:2], "--config", str(config), "--set", f"run.dir={run}"], capsys)
    assert odds(found) == pytest.approx(odds(result(arguments, capsys)), abs=1e-4)


def test_one_reward_model_may_check_alone(arguments: list[str], run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = result([*arguments[:2], "--rewards", str(run / "rewards" / "relation")], capsys)
    assert [list(segment["types"]) for segment in found["segments"]] == [["relation"], ["relation"]]


def test_reward_models_read_images_as_they_were_trained_to(
    arguments: list[str], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run / "rewards" / "relation", tmp_path / "relation")
    (tmp_path / "relation" / "metrics.json").write_text(json.dumps({"settings": {"max_pixels": 1024}}))
    Image.open(run / "image.png").resize((32, 32), Image.Resampling.LANCZOS).save(tmp_path / "small.png")
    small = [str(tmp_path / "small.png"), RESPONSE, "--rewards", str(run / "rewards" / "relation")]
    reduced = result([*arguments[:2], "--rewards", str(tmp_path / "relation")], capsys)
    assert odds(reduced) == pytest.approx(odds(result(small, capsys)), abs=1e-4)


def test_reward_models_that_read_images_in_different_ways_do_not_check_together(
    arguments: list[str], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run / "rewards", tmp_path / "rewards")
    (tmp_path / "rewards" / "relation" / "metrics.json").write_text(json.dumps({"settings": {"max_pixels": 1024}}))
    assert main("check", [*arguments[:2], "--rewards", str(tmp_path)]) == 2
    assert "relation differs" in capsys.readouterr().err


def test_the_prompt_is_read(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    asked = result([*arguments, "--prompt", "What is not in this picture at all?"], capsys)
    assert odds(asked) != pytest.approx(odds(result(arguments, capsys)), abs=1e-5)


@pytest.mark.parametrize(("threshold", "status"), [("0", 1), ("1", 0)])
def test_a_threshold_decides_the_status(arguments: list[str], threshold: str, status: int) -> None:
    assert main("check", [*arguments, "--threshold", threshold]) == status


def test_a_batch_goes_through_files(run: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": index, "image": str(run / "image.png"), "response": RESPONSE} for index in range(3)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    assert main("check", [*files, "--url", url]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [0, 1, 2] and all("check" in line for line in lines)
    assert "3 texts checked" in capsys.readouterr().err


@pytest.mark.parametrize(("threshold", "status"), [("0", 1), ("1", 2)])
def test_a_row_that_cannot_be_checked_shows_in_the_status_of_a_batch(
    run: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], threshold: str, status: int
) -> None:
    rows = [{"image": "missing.png", "response": RESPONSE}, {"image": str(run / "image.png"), "response": RESPONSE}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ["--input", str(tmp_path / "in.jsonl"), "--url", url, "--threshold", threshold]
    assert main("check", arguments) == status
    assert ["check" in json.loads(line) for line in capsys.readouterr().out.splitlines()] == [False, True]


def test_what_a_service_refuses_is_an_error_of_its_row(
    run: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"image": str(run / "image.png"), "response": "A.", "prompt": "<image> and <image>?"}
    (tmp_path / "in.jsonl").write_text(json.dumps(row))
    assert main("check", ["--input", str(tmp_path / "in.jsonl"), "--url", url]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "not_scorable" and error["message"].startswith("the prompt")


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["IMAGE"], "IMAGE and a TEXT"),
        (["IMAGE", "A.", "--input", "a.jsonl"], "IMAGE and a TEXT"),
        (["IMAGE", "A."], "--rewards FOLDER"),
        (["IMAGE", "A.", "--rewards", "a", "--url", "http://127.0.0.1:1"], "one of --url and --rewards"),
        (["IMAGE", "A.", "--set", "run.dir=a", "--rewards", "a"], "--set changes a configuration"),
        (["IMAGE", "A.", "--output", "a.jsonl", "--rewards", "a"], "--output is for a batch"),
        (["--input", "a.jsonl", "--prompt", "A?", "--rewards", "a"], "prompts"),
        (["IMAGE", "A.", "--rewards", "nowhere"], "holds no reward model"),
        (["IMAGE", "A.", "--url", "ftp://a"], "http"),
    ],
)
def test_wrong_options_are_one_sentence(
    words: list[str], advice: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FGAIF_REWARD_URL", raising=False)
    assert main("check", words) == 2
    error = capsys.readouterr().err
    assert advice in error and len(error.splitlines()) == 1


def test_an_image_that_is_none_is_one_sentence(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main("check", ["missing.png", *arguments[1:]]) == 2
    assert "cannot read the image missing.png" in capsys.readouterr().err


def test_a_wrong_token_is_told(
    arguments: list[str], url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FGAIF_REWARD_TOKEN", "wrong")
    assert main("check", [*arguments[:2], "--url", url]) == 2
    assert "FGAIF_REWARD_TOKEN" in capsys.readouterr().err


def test_in_this_process_nothing_loads_ray_or_vllm(arguments: list[str]) -> None:
    code = (
        f"import sys\nfrom jobs.cli import main\nstatus = main('check', {arguments!r})\n"
        "assert status == 0 and not {'ray', 'vllm'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The route


def post(url: str, body: Any, token: str = TOKEN) -> httpx2.Response:
    headers = {"authorization": f"Bearer {token}"}
    return httpx2.post(f"{url}/v1/check", json=body, headers=headers, timeout=60)


def test_the_route_takes_the_token_of_the_service(url: str) -> None:
    assert post(url, {"items": []}, "wrong").status_code == 401


def test_the_route_refuses_fields_that_it_does_not_know(url: str) -> None:
    item = check_item(picture(), RESPONSE).model_dump(exclude_none=True)
    assert post(url, {"items": [item | {"response_token_ids": [1]}]}).status_code == 422


def test_a_prompt_is_not_needed(url: str) -> None:
    item = check_item(picture(), RESPONSE).model_dump(exclude_none=True)
    [with_it], [without] = (
        post(url, {"items": [one]}).json()["results"]
        for one in (item, {name: item[name] for name in ("image", "response")})
    )
    assert item["prompt"] == DEFAULT_PROMPT and without["score"] == pytest.approx(with_it["score"], abs=1e-5)


def test_the_client_gets_checks_in_order(url: str) -> None:
    texts = [RESPONSE, "", "A red circle."]
    with RewardClient(url, token=TOKEN) as client:
        found = client.check([check_item(picture(), text) for text in texts])
    assert [one.response for one in found] == texts
    assert list(found[0].segments[0].types) == [one.name for one in DEFAULT]


def test_the_example_of_the_route_can_be_sent(url: str) -> None:
    [example] = httpx2.get(f"{url}/openapi.json").json()["components"]["schemas"]["CheckRequest"]["examples"]
    assert post(url, example).status_code == 200

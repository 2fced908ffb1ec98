"""The reward service on a real Ray cluster, over real HTTP and through its handle, with untrained reward models."""

import asyncio
import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import yaml
from PIL import Image
from ray import serve
from support.adapter_calls import easyr1_call, openrlhf_call, skyrl_call, trl_call
from support.image_files import encoded
from support.listening import documented_sockets, listening_sockets
from support.metrics_endpoint import exported_names, scrape_until, total
from support.replicas import preparers
from support.reward_helpers import (
    CHECKPOINT,
    PROMPT,
    RESPONSE,
    offline_model,
    picture,
    save_reward_models,
    service_config,
)
from support.reward_service_helpers import (
    TOKEN,
    TOKENIZER,
    Service,
    assert_scores,
    assert_verdicts,
    error_of,
    handle_items,
)

from actors import metrics
from actors.rewards import service as reward_service
from fgaif_ray.adapters import common, easyr1
from fgaif_ray.adapters.openrlhf import OpenRLHFRewards
from fgaif_ray.adapters.skyrl import DenseRewards
from fgaif_ray.adapters.trl import TRLRewards
from fgaif_ray.errors import UserError
from fgaif_ray.images import decode_image
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.rewards.encoding import ScoringItem
from fgaif_ray.rewards.files import read_folder
from fgaif_ray.segments import split_segments
from fgaif_ray.serving.client import AsyncRewardClient, reward_item
from fgaif_ray.serving.wire import MAX_BODY_BYTES, MAX_ITEMS, MAX_RESPONSE_CHARACTERS, ScoredResponse

pytestmark = pytest.mark.ray
RESPONSES = [
    RESPONSE,
    "A red circle.",
    "",
    "A small green triangle is at the top, and a big yellow square is at the bottom of the picture.",
    "There is nothing here. " * 6,
]


@pytest.fixture(scope="module")
def service(ray_cluster: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("run")
    folders = save_reward_models(folder / "rewards")
    config = service_config(folder, placement="separate")
    os.environ["FGAIF_REWARD_TOKEN"] = TOKEN
    try:
        info = reward_service.deploy(config, folders)
        yield Service(config, folders, info, offline_model(folders))
    finally:
        del os.environ["FGAIF_REWARD_TOKEN"]
        reward_service.shutdown()


def wire_item(**changes: Any) -> dict[str, Any]:
    return {"image": base64.b64encode(picture()).decode(), "prompt": PROMPT, "response": RESPONSE} | changes


# Rewards


def test_http_handle_and_offline_scores_agree_in_order(service: Service) -> None:
    items = handle_items(RESPONSES)
    for item, scored, handled in zip(items, service.over_http(items), service.through_handle(items), strict=True):
        assert scored.response == handled.response.text == item["response"]
        expected = service.offline(item["image"], item["response"])
        assert_scores(scored, expected)
        assert_verdicts(handled, expected)


def test_rewards_are_weighted_as_configured(service: Service) -> None:
    [scored] = service.over_http(handle_items([RESPONSE]))
    for segment in scored.segments:
        expected = {
            fact_type: weight * (getattr(segment, fact_type)[1] - getattr(segment, fact_type)[2])
            for fact_type, weight in service.config.align.reward.weights.items()
        }
        assert segment.rewards == pytest.approx(expected, abs=1e-6)
        assert segment.reward == pytest.approx(sum(expected.values()), abs=1e-6)


def test_token_rewards_lie_on_the_ends_of_the_segments(service: Service) -> None:
    [item] = handle_items([RESPONSE])
    [scored] = service.over_http([item])
    expected = np.zeros(len(item["response_token_ids"]))
    for segment in scored.segments:
        expected[segment.token_end] += segment.reward
    assert len(scored.segments) == 2
    np.testing.assert_allclose(scored.token_rewards, expected, atol=1e-6)


def test_a_single_sub_sentence_is_rewarded(service: Service) -> None:
    [scored] = service.over_http(handle_items(["A red circle."]))
    assert len(scored.segments) == 1 and sum(scored.token_rewards) == pytest.approx(scored.reward) != 0


def test_a_response_may_come_as_ids_alone(service: Service) -> None:
    ids = TOKENIZER.encode(RESPONSE, add_special_tokens=False)
    with service.client() as client:
        [from_ids] = client.score([reward_item(picture(), PROMPT, response_token_ids=ids)])
        [from_text] = client.score([reward_item(picture(), PROMPT, RESPONSE)])
    assert (from_ids.response, from_ids.reward) == (RESPONSE, pytest.approx(from_text.reward, abs=1e-5))
    assert from_text.token_rewards is None


def test_two_images_are_seen_over_http_and_through_the_handle(service: Service) -> None:
    files, prompt = (picture(3), picture(90)), "Is <image> like <image>?"
    segments = [RESPONSE[span.start : span.end] for span in split_segments(RESPONSE)]
    item = ScoringItem([decode_image(file) for file in files], prompt, segments)
    expected = {fact_type: service.model.score(fact_type, [item])[0] for fact_type in FACT_TYPES}
    with service.client() as client:
        both, swapped = client.score([reward_item(some, prompt, RESPONSE) for some in (files, files[::-1])])
    [handled] = service.through_handle([{"images": files, "prompt": prompt, "response": RESPONSE}])
    assert_scores(both, expected)
    assert_verdicts(handled, expected)
    assert swapped.reward != pytest.approx(both.reward, abs=1e-3)


def test_more_items_than_a_batch_holds_keep_their_order(service: Service) -> None:
    texts = [f"{RESPONSES[index % 4]} There is a red circle." for index in range(70)]
    results = service.through_handle(handle_items(texts))
    for index in (0, 15, 16, 37, 69):
        assert_verdicts(results[index], service.offline(picture(index), texts[index]))


def test_callers_at_the_same_time_get_their_own_scores(service: Service) -> None:
    texts = [f"{RESPONSE} The circle is {size}." for size in ("small", "big", "red", "blue", "green", "left")]

    async def score() -> list[ScoredResponse]:
        async with AsyncRewardClient(service.info.url, token=TOKEN, items_per_request=1, concurrency=6) as client:
            return await client.score([reward_item(picture(), PROMPT, text) for text in texts])

    for text, scored in zip(texts, asyncio.run(score()), strict=True):
        assert_scores(scored, service.offline(picture(), text))


def test_what_cannot_be_scored_is_none_and_the_others_are_not(service: Service) -> None:
    items = handle_items([RESPONSE] * 5)
    items[1]["image"] = b"no image"
    items[2]["response"] = "A response of other ids."
    items[3] |= {"response": "A red circle. " * 2000, "response_token_ids": None}
    assert [result is None for result in service.through_handle(items)] == [False, True, True, True, False]


def test_an_empty_batch_is_fine(service: Service) -> None:
    answer = service.post(json={"items": []})
    assert answer.status_code == 200 and answer.json()["results"] == []
    assert service.through_handle([]) == []


# OpenRLHF


def remote_request(texts: list[str]) -> dict[str, Any]:
    prompt = f"<s>USER: <image>\n{PROMPT}\nASSISTANT:\n"
    label = {"image": base64.b64encode(picture()).decode(), "prompt": PROMPT}
    return {
        "query": [f"{prompt.replace('<image>', '<image>' * 9)}{text}</s>" for text in texts],
        "prompts": [prompt] * len(texts),
        "labels": [json.dumps(label)] * len(texts),
        "step": 3,
    }


def test_open_rlhf_gets_the_same_rewards(service: Service) -> None:
    answer = service.post("/get_reward", json=remote_request(RESPONSES[:2]))
    with service.client() as client:
        expected = client.score([reward_item(picture(), PROMPT, text) for text in RESPONSES[:2]])
    body = answer.json()
    assert set(body) == {"rewards", "scores", "extra_logs"}
    assert body["rewards"] == pytest.approx([scored.reward for scored in expected], abs=1e-5)
    assert body["extra_logs"]["segments"] == [2.0, 1.0]
    assert all(0 <= score <= 1 for score in body["scores"])


def test_trainers_get_the_rewards_of_the_service(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [RESPONSES[0], RESPONSES[1], RESPONSES[3]]
    monkeypatch.setenv("FGAIF_REWARD_URL", service.info.url)
    batch, output = skyrl_call(texts, TOKENIZER)

    async def on_tokens() -> list[list[float]]:
        async with AsyncRewardClient(service.info.url) as client:
            return await DenseRewards(client, TOKENIZER).token_rewards(batch, output)

    with service.client() as client:
        scored = client.score([reward_item(picture(index), PROMPT, text) for index, text in enumerate(texts)])
        by_type = trl_call(TRLRewards(client).functions, texts)
        summed = OpenRLHFRewards(client, TOKENIZER.all_special_tokens)(**openrlhf_call(texts))["rewards"].tolist()
    means = [one["overall"] for one in easyr1.compute_score(easyr1_call(texts))]
    common.close_shared_clients()
    totals = [one.reward for one in scored]
    weights = service.config.align.reward.weights
    weighted = [
        sum(weights[kind] * value for kind, value in zip(FACT_TYPES, row, strict=True)) for row in zip(*by_type)
    ]
    counts = [len(one.segments) for one in scored]
    assert summed == pytest.approx(totals, abs=1e-4)
    assert [sum(row) for row in asyncio.run(on_tokens())] == pytest.approx(totals, abs=1e-4)
    assert means == pytest.approx([total / count for total, count in zip(totals, counts, strict=True)], abs=1e-4)
    assert weighted == pytest.approx(means, abs=1e-4)


def test_open_rlhf_may_send_nothing(service: Service) -> None:
    answer = service.post("/get_reward", json={"query": [], "prompts": [], "labels": []})
    assert answer.status_code == 200 and answer.json()["rewards"] == []


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"labels": ["cat.png"]}, "invalid_label"),
        ({"query": ["something else"]}, "query_mismatch"),
        ({"prompts": []}, "invalid_request"),
    ],
)
def test_open_rlhf_is_told_what_is_wrong(service: Service, changes: dict[str, Any], code: str) -> None:
    assert error_of(service.post("/get_reward", json=remote_request(["A circle."]) | changes)) == (422, code)


# Refusals


@pytest.mark.parametrize(
    "headers", [{"authorization": ""}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}]
)
@pytest.mark.parametrize("path", ["/v1/rewards", "/v1/check", "/get_reward", "/v1/models", "/elsewhere"])
def test_without_the_token_nothing_is_told(service: Service, headers: dict[str, str], path: str) -> None:
    answer = httpx2.request("GET" if path == "/v1/models" else "POST", service.info.url + path, headers=headers)
    assert error_of(answer) == (401, "unauthorized")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"image": "https://example.org/cat.png"}, "invalid_image"),
        ({"image": "/etc/passwd"}, "invalid_image"),
        ({"image": base64.b64encode(picture()[:-30]).decode()}, "invalid_image"),
        ({"response_token_ids": [5, 6, 7]}, "response_mismatch"),
        ({"response": None, "response_token_ids": [10**9]}, "invalid_token_ids"),
        ({"prompt": "Compare <image> and <image>."}, "not_scorable"),
        ({"response": "A red circle. " * 1000}, "not_scorable"),
    ],
)
def test_an_item_that_cannot_be_scored_is_named(service: Service, changes: dict[str, Any], code: str) -> None:
    answer = service.post(json={"items": [wire_item(), wire_item(**changes)]})
    assert error_of(answer) == (422, code)
    assert answer.json()["error"]["message"].startswith("items[1]: ")


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"items": [wire_item()], "temperature": 1},
        {"items": [wire_item(url="x")]},
        {"items": [wire_item(response=None)]},
        {"items": [wire_item(response_token_ids=["1"])]},
        {"items": [wire_item(response_token_ids=[-1])]},
        {"items": [wire_item(response="x" * (MAX_RESPONSE_CHARACTERS + 1))]},
        {"items": [wire_item(image="")] * (MAX_ITEMS + 1)},
    ],
)
def test_another_shape_is_refused(service: Service, body: Any) -> None:
    assert error_of(service.post(json=body)) == (422, "invalid_request")


def test_broken_json_is_refused(service: Service) -> None:
    answer = service.post(content=b'{"items": [', headers={"content-type": "application/json"})
    assert error_of(answer) == (422, "invalid_request")


def test_another_content_type_is_refused(service: Service) -> None:
    answer = service.post(content=b"{}", headers={"content-type": "text/plain"})
    assert error_of(answer) == (415, "unsupported_media_type")


def test_a_large_image_is_refused(service: Service) -> None:
    assert error_of(service.post(json={"items": [wire_item(image="A" * (15 << 20))]})) == (413, "image_too_large")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused(service: Service, chunked: bool) -> None:
    piece = b" " * (1 << 20)
    pieces = [piece] * (MAX_BODY_BYTES // len(piece) + 1)
    content = iter(pieces) if chunked else b"".join(pieces)
    answer = service.post(content=content, headers={"content-type": "application/json"})
    assert error_of(answer) == (413, "body_too_large")


def test_other_routes_and_methods_have_errors_of_the_same_shape(service: Service) -> None:
    assert error_of(service.post("/v2/rewards", json={})) == (404, "not_found")
    answer = httpx2.get(service.info.url + "/v1/rewards", headers={"authorization": f"Bearer {TOKEN}"})
    assert error_of(answer) == (405, "method_not_allowed")


def test_the_request_id_is_the_callers(service: Service) -> None:
    answer = service.post(json={"items": []}, headers={"x-request-id": "step-7"})
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "step-7"


@pytest.mark.parametrize("request_id", [b"\xff\xfe", "\u00e9".encode(), b"7" * 3000])
def test_another_request_id_takes_the_place_of_one_that_cannot_be_shown(service: Service, request_id: bytes) -> None:
    answer = service.post(json={"items": []}, headers={"x-request-id": request_id})
    assert answer.status_code == 200
    assert re.fullmatch(r"[\w-]{8,64}", answer.headers["x-request-id"])
    assert answer.headers["x-request-id"] == answer.json()["request_id"]


# Attacks; what each of them is refused for is in tests/unit/rewards/test_reward_attacks.py


def test_small_files_of_many_pixels_cost_no_other_caller_an_answer(service: Service) -> None:
    pixels = encoded(Image.new("1", (8000, 8000)))
    attacks = [{"items": [wire_item(image=base64.b64encode(pixels).decode())] * 4}] * 4
    with ThreadPoolExecutor(8) as pool:
        refused = [pool.submit(service.post, json=attack) for attack in attacks]
        scored = [pool.submit(service.post, json={"items": [wire_item()]}) for _ in range(8)]
        assert [error_of(answer.result()) for answer in refused] == [(413, "image_too_large")] * 4
        assert [answer.result().status_code for answer in scored] == [200] * 8


def test_a_caller_whose_label_cannot_be_read_fails_alone(service: Service) -> None:
    """A lone surrogate was the end of the batch into which the requests of all callers are merged."""
    wrong = remote_request(["A circle."])
    wrong["labels"] = [json.dumps({"image": base64.b64encode(picture()).decode(), "prompt": "\ud800"})]
    with ThreadPoolExecutor(12) as pool:
        refused = [pool.submit(service.post, "/get_reward", json=wrong) for _ in range(6)]
        scored = [pool.submit(service.post, "/get_reward", json=remote_request(RESPONSES[:2])) for _ in range(12)]
        assert [error_of(answer.result()) for answer in refused] == [(422, "invalid_text")] * 6
        assert [answer.result().status_code for answer in scored] == [200] * 12


def test_a_response_of_wrong_bytes_is_refused_as_the_others_are_scored(service: Service) -> None:
    garbage = {"items": [wire_item(response=None, response_token_ids=[99] * 4096)] * 8}
    with ThreadPoolExecutor(6) as pool:
        refused = [pool.submit(service.post, json=garbage) for _ in range(2)]
        scored = [pool.submit(service.post, json={"items": [wire_item()]}) for _ in range(4)]
        assert [error_of(answer.result()) for answer in refused] == [(422, "not_scorable")] * 2
        assert [answer.result().status_code for answer in scored] == [200] * 4


def test_the_service_goes_on_after_its_preparers_were_killed(service: Service) -> None:
    killed = preparers()
    for process in killed:
        process.kill()
    assert len(killed) >= service.config.serve.preparers  # so many a gateway
    assert [service.post(json={"items": [wire_item()]}).status_code for _ in range(4)] == [200] * 4
    assert httpx2.get(f"{service.info.url}/ready", timeout=60).status_code == 200


# Status


def test_live_ready_and_docs_need_no_token(service: Service) -> None:
    for path in ("/live", "/ready", "/docs", "/openapi.json"):
        assert httpx2.get(service.info.url + path).status_code == 200


def test_every_error_is_documented(service: Service) -> None:
    paths = httpx2.get(service.info.url + "/openapi.json").json()["paths"]
    assert {"401", "413", "415", "422", "429", "503", "504"} <= set(paths["/v1/rewards"]["post"]["responses"])


def test_the_examples_of_the_interface_are_scored(service: Service) -> None:
    schemas = httpx2.get(service.info.url + "/openapi.json").json()["components"]["schemas"]
    for path, schema in (("/v1/rewards", "RewardRequest"), ("/get_reward", "RemoteRewardRequest")):
        [example] = schemas[schema]["examples"]
        assert service.post(path, json=example).status_code == 200


@pytest.mark.slow
def test_schemathesis_finds_no_server_error_and_nothing_undocumented(service: Service, tmp_path: Path) -> None:
    """Generated requests of every route, right and wrong ones, against the interface as the service describes it."""
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", f"{service.info.url}/openapi.json",
        "--header", f"Authorization: Bearer {TOKEN}", "--checks", "all", "--max-examples", "60", "--seed", "1",
        # What decodes to no image is a string like any other to the schema, and refused with 422.
        "--exclude-checks", "positive_data_acceptance", "--generation-database", "none", "--no-color",
        "--request-timeout", "120",  # a busy machine's answers come late, which is no error of the interface
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Tested: +6$", done.stdout, re.MULTILINE)


def test_models_are_listed_with_their_versions(service: Service) -> None:
    with service.client() as client:
        listed = client.models()
        [scored] = client.score([reward_item(picture(), PROMPT, RESPONSE)])
    assert [card.id for card in listed.models] == list(FACT_TYPES)
    assert [card.version for card in listed.models] == [
        read_folder(folder).version for folder in service.folders.values()
    ]
    assert listed.model_version == service.info.model_version == scored.model_version
    assert str(Path(CHECKPOINT).parent) not in listed.model_dump_json()


def test_requests_and_batches_of_each_model_are_exported_for_prometheus(service: Service) -> None:
    assert service.post(json={"items": [wire_item()]}).status_code == 200
    recorded = (metrics.REWARD_REQUESTS, metrics.REWARD_BATCH_ITEMS, metrics.REWARD_FORWARD_DURATION)
    samples = scrape_until(name for metric in recorded for name in exported_names(metric))
    assert total(samples, "ray_fgaif_reward_requests_total", route="/v1/rewards", status="200") >= 1
    for name in ("ray_fgaif_reward_batch_items_count", "ray_fgaif_reward_forward_duration_seconds_count"):
        assert all(total(samples, name, model=fact_type) >= 1 for fact_type in FACT_TYPES)


def test_a_ray_that_a_job_starts_listens_where_the_documentation_says(
    service: Service, ray_cluster: dict[str, Any], repository: Path
) -> None:
    found = listening_sockets(str(Path(ray_cluster["session_dir"]).parent), os.getpid())
    assert ("ProxyActor", "loopback") in found and ("ServeReplica", "loopback") in found
    assert found - documented_sockets(repository, "where a job starts Ray") == set()


# The job


@pytest.mark.slow
def test_the_job_serves_until_it_is_terminated(service: Service, tmp_path: Path, repository: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(service.config.model_dump(mode="json")))
    (tmp_path / "image.png").write_bytes(picture())
    command = [sys.executable, "-m", "jobs.serve_rewards", "--config", str(tmp_path / "config.yaml")]
    process = subprocess.Popen(
        [*command, "--set", "serve.placement=shared"], cwd=repository, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        lines = []
        while not lines or not lines[-1].startswith("Ctrl-C"):
            lines.append(process.stdout.readline())
            assert lines[-1], "the job ended before it served"
        example = "".join(lines[lines.index("Try it:\n") + 1 : -1])
        answer = subprocess.run(["sh", "-c", example], cwd=tmp_path, capture_output=True, check=True).stdout
        url = re.findall(r"http://[0-9.:]+", example)[0]
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert json.loads(answer)["results"][0]["response"] == "A red circle."
    assert (process.returncode, rest.splitlines()[-1]) == (0, "serve_rewards: stopped")
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{url}/live")
    assert not any(TOKEN in line for line in lines)


# Deployment


def deployment_time() -> float:
    return serve.status().applications[reward_service.APP_NAME].last_deployed_time_s


def test_deploying_the_same_again_does_nothing(service: Service) -> None:
    before = deployment_time()
    assert reward_service.deploy(service.config, service.folders) == service.info
    assert deployment_time() == before


def test_three_deployments_stand_behind_the_gateway(service: Service) -> None:
    deployments = serve.status().applications[reward_service.APP_NAME].deployments
    assert set(deployments) == {"RewardGateway", "ExistenceReward", "AttributeReward", "RelationReward"}


def test_a_missing_reward_model_is_named(service: Service) -> None:
    with pytest.raises(UserError, match="relation"):
        reward_service.deploy(service.config, {name: service.folders[name] for name in ("existence", "attribute")})


def test_a_coarse_verdict_is_not_to_be_divided(service: Service, tmp_path: Path) -> None:
    config = service_config(Path(service.config.run.dir))
    reward = config.align.reward.model_copy(update={"normalise_by_segments": True})
    config = config.model_copy(update={"align": config.align.model_copy(update={"reward": reward})})
    with pytest.raises(UserError, match="one verdict per response"):
        reward_service.deploy(config, save_reward_models(tmp_path, kind="coarse"))


def test_applied_temperatures_are_another_version(service: Service) -> None:
    folder = service.folders["existence"]
    assert read_folder(folder).served_version(False) != read_folder(folder).served_version(True)


def test_an_open_port_needs_a_token(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FGAIF_REWARD_TOKEN")
    with pytest.raises(UserError, match="FGAIF_REWARD_TOKEN"):
        reward_service.deploy(service_config(Path(service.config.run.dir), host="0.0.0.0"), service.folders)


def test_the_token_is_nowhere_in_the_run_and_the_settings(service: Service) -> None:
    written = [path for path in Path(service.config.run.dir).rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in path.read_bytes() for path in written)


def test_a_port_in_use_is_told_and_the_service_stays(service: Service) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = service_config(Path(service.config.run.dir), port=taken.getsockname()[1])
        with pytest.raises(UserError, match=r"serve\.port"):
            reward_service.deploy(config, service.folders)
    with service.client() as client:
        assert client.is_ready()


def test_other_models_and_placement_replace_the_service(service: Service, tmp_path: Path) -> None:
    # One adapter for the three types: one deployment, whatever the placement.
    folders = save_reward_models(tmp_path / "rewards", seed=7, kind="multitask")
    config = service_config(Path(service.config.run.dir), placement="separate")
    rewards = config.rewards.model_copy(update={"kind": "multitask", "temperature_scaling": True})
    config = config.model_copy(update={"rewards": rewards})
    info = reward_service.deploy(config, folders)
    assert info.url == service.info.url and info.model_version != service.info.model_version
    assert set(serve.status().applications[info.app_name].deployments) == {"RewardGateway", "SharedReward"}
    other = Service(config, folders, info, offline_model(folders, temperature_scaling=True))
    with other.client() as client:
        assert (client.models().kind, client.models().temperature_scaling) == ("multitask", True)
    items = handle_items(RESPONSES)
    for item, verdicts in zip(items, other.through_handle(items), strict=True):
        assert verdicts.model_version == info.model_version
        assert_verdicts(verdicts, other.offline(item["image"], item["response"]))


def test_a_backbone_that_is_none_is_told_in_one_sentence(service: Service, tmp_path: Path) -> None:
    config = service_config(tmp_path, placement="shared")
    config = config.model_copy(update={"rewards": config.rewards.model_copy(update={"backbone": str(tmp_path)})})
    with pytest.raises(UserError, match=re.escape(f"broken: {tmp_path}/config.json")):
        reward_service.deploy(config, service.folders)
    assert reward_service.APP_NAME not in serve.status().applications

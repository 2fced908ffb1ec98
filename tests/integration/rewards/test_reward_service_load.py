"""The reward service under load, over real HTTP: more than it takes, a replica killed, another version deployed."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx2
import numpy as np
import pytest
from support.metrics_endpoint import scrape_until, total
from support.replicas import replicas
from support.reward_helpers import PROMPT, offline_model, picture, save_reward_models, service_config
from support.reward_service_helpers import TOKEN, Service, assert_scores, error_of

from actors import metrics
from actors.rewards import service as reward_service
from fgaif_ray.config import change_config
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.serving.client import RetryPolicy, RewardClient, reward_item
from fgaif_ray.serving.wire import RewardItem, ScoredResponse

pytestmark = [pytest.mark.ray, pytest.mark.slow]

CAPACITY = 32
"""Items that the service of these tests lets wait."""
PATIENCE_S = 240.0
EXPORTED_EVERY_S = 12.0
"""Seconds after which a process's metrics are told, with a margin."""
TEXTS = ["A red circle.", "There is a big blue square at the left. It is above a green ring.", "Nothing."]
PATIENT = RetryPolicy(max_retries=60, initial_s=0.2, maximum_s=1.0)
NO_RETRIES = RetryPolicy(max_retries=0)


@pytest.fixture(scope="module")
def service(ray_cluster: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("run")
    folders = save_reward_models(folder / "rewards")
    config = service_config(folder, num_cpus=0.1, gateways=2, max_waiting_items=CAPACITY)
    os.environ["FGAIF_REWARD_TOKEN"] = TOKEN
    try:
        info = reward_service.deploy(config, folders)
        yield Service(config, folders, info, offline_model(folders))
    finally:
        del os.environ["FGAIF_REWARD_TOKEN"]
        reward_service.shutdown()


def item_of(index: int) -> RewardItem:
    return reward_item(picture(index), PROMPT, TEXTS[index % len(TEXTS)])


def assert_scored_by(service: Service, index: int, scored: ScoredResponse) -> None:
    assert scored.response == TEXTS[index % len(TEXTS)]
    assert_scores(scored, service.offline(picture(index), scored.response))


@dataclass
class Load:
    """Callers that ask for one item after the other until the block ends; an exception of one is raised there."""

    url: str
    retries: RetryPolicy
    callers: int = 2
    pause_s: float = 0.1
    """Of a caller between two requests: replicas that start need the processor too."""
    answers: list[tuple[int, ScoredResponse]] = field(default_factory=list)
    """Index of the item, and its reward."""
    failures: list[Exception] = field(default_factory=list)
    _end: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(self.callers)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _call(self, number: int) -> None:
        with RewardClient(self.url, token=TOKEN, retries=self.retries) as client:
            index = number
            while not self._end.is_set():
                try:
                    [scored] = client.score([item_of(index)])
                    self.answers.append((index, scored))
                except Exception as error:
                    self.failures.append(error)
                index = (index + self.callers) % 24
                time.sleep(self.pause_s)

    def wait_for(self, more: int) -> None:
        """Until so many more requests have ended."""
        until = len(self.answers) + len(self.failures) + more
        wait_until(lambda: len(self.answers) + len(self.failures) >= until)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# Four times as much as the service takes


def test_what_does_not_fit_is_turned_away_before_what_waits_is_scored(service: Service) -> None:
    per_request = 8
    body = {"items": [item_of(index).model_dump(exclude_none=True) for index in range(per_request)]}
    requests = 4 * CAPACITY // per_request
    together = threading.Barrier(requests)

    def post(_: int) -> tuple[httpx2.Response, float]:
        together.wait()
        answer = service.post(json=body)
        return answer, time.monotonic()

    with ThreadPoolExecutor(requests) as pool:
        answers = list(pool.map(post, range(requests)))
    scored = [when for answer, when in answers if answer.status_code == 200]
    refused = [(answer, when) for answer, when in answers if answer.status_code != 200]
    assert len(scored) >= CAPACITY // per_request and refused
    for answer, when in refused:
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "busy")
        assert int(answer.headers["retry-after"]) >= 1
        assert when < max(scored)


def test_all_who_try_again_get_their_rewards(service: Service) -> None:
    def ask(caller: int) -> list[ScoredResponse]:
        with RewardClient(service.info.url, token=TOKEN, retries=PATIENT, items_per_request=8) as client:
            return client.score([item_of(caller + index) for index in range(16)])

    callers = 4 * CAPACITY // 16
    with ThreadPoolExecutor(callers) as pool:
        answers = list(pool.map(ask, range(callers)))
    for caller, scored in enumerate(answers):
        for index, one in enumerate(scored):
            assert_scored_by(service, caller + index, one)


def test_a_request_larger_than_the_queue_is_scored_when_it_is_empty(service: Service) -> None:
    with RewardClient(service.info.url, token=TOKEN, retries=PATIENT, items_per_request=2 * CAPACITY) as client:
        scored = client.score([item_of(index) for index in range(CAPACITY + 1)])
    assert len(scored) == CAPACITY + 1


def test_while_it_is_full_the_service_says_that_it_lives(service: Service) -> None:
    alive = []
    with Load(service.info.url, PATIENT, callers=2 * CAPACITY, pause_s=0) as load:
        while len(alive) < 10:
            load.wait_for(2)
            alive.append(httpx2.get(f"{service.info.url}/live", timeout=PATIENCE_S).status_code)
    assert alive == [200] * 10


# Work that nobody waits for


def test_what_has_timed_out_is_not_scored_any_more(service: Service) -> None:
    """The deployments stand still until the callers have their 504; then they score none of it, or a list of it."""
    config = change_config(service.config, ["serve.request_timeout_s=10", "serve.max_waiting_items=2048"])
    reward_service.deploy(config, service.folders)
    items = [item_of(index).model_dump(exclude_none=True) for index in range(16)]
    assert service.post(json={"items": items}).status_code == 200
    before = forward_passes()
    (scorer,) = replicas("SharedReward")
    scorer.suspend()
    try:
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: service.post(json={"items": items}), range(6)))
    finally:
        scorer.resume()
    assert {error_of(answer) for answer in answers} == {(504, "timeout")}
    wait_until(lambda: service.post(json={"items": items[:1]}).status_code == 200)
    assert forward_passes() - before <= 3, "of the six lists, the one or two that were begun, and what was asked last"
    reward_service.deploy(service.config, service.folders)


def forward_passes() -> float:
    """Lists that the reward models have scored, once all of them are told to Prometheus."""
    time.sleep(EXPORTED_EVERY_S)
    name = f"ray_{metrics.REWARD_BATCH_ITEMS.name}_count"
    return total(scrape_until([name]), name, model=metrics.SHARED)


# A replica is killed


@pytest.mark.parametrize(("deployment", "count"), [("SharedReward", 1), ("RewardGateway", 2)])
def test_a_killed_replica_costs_those_who_try_again_nothing(service: Service, deployment: str, count: int) -> None:
    with Load(service.info.url, PATIENT) as load:
        load.wait_for(10)
        before = {process.pid for process in replicas(deployment)}
        assert len(before) == count
        os.kill(min(before), signal.SIGKILL)
        wait_until(lambda: len({process.pid for process in replicas(deployment)} - before) == 1)
        load.wait_for(20)
    assert load.failures == []
    for index, scored in load.answers:
        assert_scored_by(service, index, scored)


# Another version is deployed


def is_close(scored: ScoredResponse, fact_type: str, expected: np.ndarray) -> bool:
    triples = np.array([getattr(segment, fact_type) for segment in scored.segments])
    return bool(np.allclose(triples, expected, atol=1e-4))


def test_rolling_out_another_version_fails_no_request(service: Service, tmp_path: Path) -> None:
    folders = save_reward_models(tmp_path / "rewards", seed=3)
    config = change_config(service.config, ["serve.replace=rolling"])
    with Load(service.info.url, NO_RETRIES) as load:
        load.wait_for(10)
        info = reward_service.deploy(config, folders)
        load.wait_for(4 * load.callers)  # those that were under way may still have had replicas of before
        deployed = len(load.answers)
        load.wait_for(10)
    assert load.failures == []
    assert info.url == service.info.url and info.model_version != service.info.model_version
    new = Service(config, folders, info, offline_model(folders))
    for index, scored in load.answers[:deployed]:
        old, other = (one.offline(picture(index), scored.response) for one in (service, new))
        for fact_type in FACT_TYPES:
            assert is_close(scored, fact_type, old[fact_type]) or is_close(scored, fact_type, other[fact_type])
    for index, scored in load.answers[deployed:]:
        assert scored.model_version == info.model_version
        assert_scored_by(new, index, scored)

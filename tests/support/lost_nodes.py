"""A stage that loses its node: what is done to it, what it must say, and who asks its service meanwhile."""

import re
import threading
import time
from typing import Any, Self

import httpx2

from fgaif_ray import storage
from fgaif_ray.serving.client import reward_item
from support.local_nodes import LocalNodes, NodeJob
from support.reward_helpers import PROMPT, picture

LOST = re.compile(r"^Node \S+ \(\w+, \w{8}\) was lost: what it was doing is done again on other nodes\.$", re.MULTILINE)
PARTS_BEFORE = 2
PATIENCE_S = 300.0


def lose_while(nodes: LocalNodes, job: NodeJob, role: str, cpus: int, node: Any, begun: Any) -> None:
    """Lose a node once the job has begun, and put another one in its place."""
    job.wait_for(begun)
    nodes.lose(node)
    nodes.add(role, cpus)


def parts(folder: str) -> int:
    return len(storage.list_parts(folder))


def check_said(output: str) -> None:
    """One line for the node; nothing that reads like a crash of the job."""
    assert len(LOST.findall(output)) == 1, output[-4000:]
    assert "Traceback" not in output


class Caller(threading.Thread):
    """Asks again and again for the rewards of one response while the block lasts."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        item = reward_item(picture(), PROMPT, "There is a red circle.")
        self._body = {"items": [item.model_dump(exclude_none=True)]}
        self._url = url + "/v1/rewards"
        self._done = threading.Event()
        self.answers: list[tuple[int, dict[str, Any]]] = []
        """Status and body; 0 where there was no answer."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()

    def run(self) -> None:
        with httpx2.Client(timeout=PATIENCE_S) as client:
            while not self._done.is_set():
                try:
                    answer = client.post(self._url, json=self._body)
                    self.answers.append((answer.status_code, answer.json()))
                except (httpx2.TransportError, ValueError) as error:
                    self.answers.append((0, {"error": str(error)}))
                time.sleep(0.02)

    def good(self) -> list[float]:
        return [body["results"][0]["reward"] for status, body in self.answers if status == 200]

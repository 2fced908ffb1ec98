"""Groups of actors over several nodes: spread, put back after a loss, and nothing left of their reservation."""

import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest
from support.local_nodes import LONGEST_S, LocalNodes

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(LONGEST_S)]

# A process of its own, since a process has one Ray.
DRIVER = """
import sys, time
import ray
from actors.cluster.placement import spread
from fgaif_ray.cluster.resources import ResourceRequest

@ray.remote(max_restarts=3, max_task_retries=-1)
class Place:
    def node(self):
        return ray.get_runtime_context().get_node_id()

ray.init(address=sys.argv[1], log_to_driver=False)
with spread(ResourceRequest("Place", "", 2, 1, label_selector={"role": "inference"})) as places:
    actors = [Place.options(**place).remote() for place in places]
    found = ray.get([actor.node.remote() for actor in actors])
    print(">", *found, flush=True)
    lost = input()
    while lost in found:
        time.sleep(0.2)
        found = ray.get([actor.node.remote() for actor in actors])
    print(">", *found, flush=True)
while ray.available_resources()["CPU"] != ray.cluster_resources()["CPU"]:
    time.sleep(0.1)
print("> free", flush=True)
"""


def told(output: IO[str]) -> list[str]:
    """The words of the driver's next line; Ray writes lines of its own in between."""
    return next(line for line in output if line.startswith("> ")).split()[1:]


def test_a_group_is_spread_and_an_actor_of_a_lost_node_comes_back_elsewhere(
    nodes: LocalNodes, repository: Path
) -> None:
    """Each node has room for both actors, and Ray by itself fills a node to its half first."""
    nodes.add("data", 4)
    first, second = (nodes.add("inference", 4) for _ in range(2))
    command = [sys.executable, "-c", DRIVER, nodes.address]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=repository) as driver:
        assert driver.stdin is not None and driver.stdout is not None
        before = told(driver.stdout)
        nodes.lose(first)
        driver.stdin.write(f"{first.node_id}\n")
        driver.stdin.flush()
        after = told(driver.stdout)
        last = told(driver.stdout)
    assert sorted(before) == sorted([first.node_id, second.node_id])
    assert after == [second.node_id] * 2
    assert last == ["free"]

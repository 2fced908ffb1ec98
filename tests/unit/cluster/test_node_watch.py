"""What is told of nodes that are lost or will be taken away."""

from typing import Any

from actors.cluster.lost_nodes import NodeWatch, is_loss


def node(identity: str, alive: bool = True, reason: int = 0) -> dict[str, Any]:
    labels = {"role": "data"}
    return {
        "NodeID": identity,
        "Alive": alive,
        "NodeManagerAddress": "10.0.0.5",
        "Labels": labels,
        "DeathReason": reason,
    }


def test_a_lost_node_is_told_once_and_one_that_was_given_back_is_not() -> None:
    said: list[str] = []
    watch = NodeWatch(said.append)
    watch.look([node("a" * 56), node("b" * 56), node("c" * 56, alive=False)], {}, 0.0)
    for _ in range(2):
        watch.look([node("a" * 56, False, 2), node("b" * 56, False, 4), node("c" * 56, False, 2)], {}, 0.0)
    assert said == ["Node 10.0.0.5 (data, aaaaaaaa) was lost: what it was doing is done again on other nodes."]


def test_a_notice_is_told_once_and_an_idle_node_that_goes_is_not() -> None:
    said: list[str] = []
    watch = NodeWatch(said.append)
    for _ in range(2):
        watch.look([node("a" * 56), node("b" * 56)], {"a" * 56: 125_000, "b" * 56: 0}, 5.0)
    assert said == ["Node 10.0.0.5 (data, aaaaaaaa) will be taken away in 120 s."]


def test_a_loss_is_found_below_what_ray_train_makes_of_it() -> None:
    from ray.exceptions import ActorDiedError
    from ray.train import WorkerGroupError

    unhealthy = RuntimeError("a worker did not answer")
    unhealthy.health_check_failure = ActorDiedError()  # type: ignore[attr-defined]
    assert is_loss(WorkerGroupError("failed", {1: unhealthy}))
    assert not is_loss(WorkerGroupError("failed", {0: ValueError("wrong")}))

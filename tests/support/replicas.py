"""Processes of the reward service's replicas, and of what they have started."""

import psutil
import ray

from actors.rewards import service as reward_service


def replicas(deployment: str) -> list[psutil.Process]:
    """Processes of the replicas, which Ray names after their deployment."""
    title = f"ray::ServeReplica:{reward_service.APP_NAME}:{deployment}"
    found = []
    for process in psutil.Process().children(recursive=True) + raylet_children():
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith(title):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return list({process.pid: process for process in found}.values())


def preparers() -> list[psutil.Process]:
    """The processes in which the gateway has items prepared."""
    children = [child for gateway in replicas("RewardGateway") for child in gateway.children()]
    return [child for child in children if "fgaif_ray.rewards.preparation_process" in child.cmdline()]


def raylet_children() -> list[psutil.Process]:
    """Of the local cluster, whose processes are children of the raylet and not of the test."""
    raylet = next(node["RayletSocketName"] for node in ray.nodes() if node["Alive"])
    owners = [p for p in psutil.process_iter(["cmdline"]) if any(raylet in part for part in p.info["cmdline"] or [])]
    return [child for owner in owners for child in owner.children(recursive=True)]

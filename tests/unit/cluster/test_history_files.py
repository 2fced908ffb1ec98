"""The manifests of KubeRay's history server, and the patch that adds its collector to the job."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from support.paths import ROOT

from fgaif_ray.cluster.node_types import PLACEHOLDER

KUBERAY = ROOT / "deploy" / "kuberay"
# What KubeRay 1.7 knows of the collector, and what its operator sets itself and refuses; the patched job passed its own
# schema when it was written.
COLLECTOR_KEYS = {"image", "imagePullPolicy", "resources", "env"}
OF_THE_OPERATOR = {
    "POD_IP", "FQ_RAY_IP", "RAY_CLUSTER_NAME", "RAY_CLUSTER_NAMESPACE", "RAY_ROLE", "OWNER_KIND", "OWNER_NAME",
    "EVENTS_PORT",
}  # fmt: skip


@pytest.fixture(scope="module")
def collector() -> dict[str, Any]:
    patch = yaml.safe_load((KUBERAY / "history-collector.yaml").read_text())
    options: dict[str, Any] = patch["spec"]["rayClusterSpec"]["historyServerOptions"]["collectorOptions"]
    return options


@pytest.fixture(scope="module")
def server() -> dict[str, dict[str, Any]]:
    """The manifest's objects by kind."""
    found = {one["kind"]: one for one in yaml.safe_load_all((KUBERAY / "history-server.yaml").read_text())}
    assert set(found) == {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Service", "Deployment"}
    return found


def pod(server: dict[str, dict[str, Any]]) -> dict[str, Any]:
    template: dict[str, Any] = server["Deployment"]["spec"]["template"]
    return template


def variables(env: list[dict[str, Any]]) -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in env}


def test_the_patch_changes_nothing_but_the_collector() -> None:
    patch = yaml.safe_load((KUBERAY / "history-collector.yaml").read_text())
    job = yaml.safe_load((KUBERAY / "rayjob.yaml").read_text())
    path = []
    while len(patch) == 1 and isinstance(patch, dict):
        (key, patch) = next(iter(patch.items()))
        path.append(key)
        job = job.get(key, {})
    assert path == ["spec", "rayClusterSpec", "historyServerOptions", "collectorOptions"]
    assert job == {}


def test_the_operator_accepts_the_collector(collector: dict[str, Any]) -> None:
    assert set(collector) <= COLLECTOR_KEYS
    found = variables(collector["env"])
    assert not OF_THE_OPERATOR & set(found)
    assert found["STORAGE_BACKEND"] == "s3" and found["S3_REGION"]


def test_both_ends_use_the_same_place_and_version(collector: dict[str, Any], server: dict[str, Any]) -> None:
    [container] = pod(server)["spec"]["containers"]
    assert variables(container["env"]) == variables(collector["env"])
    images = [collector["image"], container["image"]]
    assert [re.fullmatch(r"quay\.io/kuberay/(\w+):v\d+\.\d+\.\d+", image)[1] for image in images] == [
        "collector",
        "historyserver",
    ]
    assert len({image.partition(":")[2] for image in images}) == 1


def test_what_has_to_be_filled_in_is_marked_and_no_secret_is_in_a_file(collector: dict[str, Any]) -> None:
    found = variables(collector["env"])
    assert [name for name, value in found.items() if value == PLACEHOLDER] == ["S3_BUCKET", "S3_REGION"]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert found[name]["secretKeyRef"] == {"name": "fgaif-history", "key": name, "optional": True}


def test_the_server_may_read_clusters_and_nothing_else(server: dict[str, Any]) -> None:
    assert server["ClusterRole"]["rules"] == [
        {"apiGroups": ["ray.io"], "resources": ["rayclusters"], "verbs": ["get", "list"]}
    ]
    [subject] = server["ClusterRoleBinding"]["subjects"]
    assert server["ClusterRoleBinding"]["roleRef"]["name"] == server["ClusterRole"]["metadata"]["name"]
    assert subject["name"] == server["ServiceAccount"]["metadata"]["name"] == pod(server)["spec"]["serviceAccountName"]
    # The namespace that docs/operations.md makes.
    assert f"create namespace {subject['namespace']} " in (ROOT / "docs" / "operations.md").read_text()


def test_the_server_which_asks_for_no_token_is_behind_the_network_policy(server: dict[str, Any]) -> None:
    assert server["Service"]["spec"]["type"] == "ClusterIP"
    own, callers = yaml.safe_load_all((KUBERAY / "network-policy.yaml").read_text())
    labels = pod(server)["metadata"]["labels"]
    assert own["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    assert not callers["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    for selector in (server["Service"]["spec"]["selector"], server["Deployment"]["spec"]["selector"]["matchLabels"]):
        assert selector == labels


def test_the_server_runs_without_privileges_with_probes_and_limits(server: dict[str, Any]) -> None:
    spec = pod(server)["spec"]
    [container] = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] > 0
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert {"readinessProbe", "livenessProbe"} <= set(container)
    assert set(container["resources"]["limits"]) == {"cpu", "memory"}


def paths_in_commands() -> Iterator[str]:
    for name in ("history-collector.yaml", "history-server.yaml"):
        yield from re.findall(r"deploy/kuberay/[\w-]+\.yaml", (KUBERAY / name).read_text())


def test_files_that_the_commands_name_are_there() -> None:
    assert [path for path in paths_in_commands() if not (ROOT / path).exists()] == []

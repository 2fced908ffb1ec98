"""The shipped cluster files, manifests and image: valid, closed to the outside, and able to run what they are for."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.image_context import read_instructions
from support.paths import ROOT

from actors.cluster.cluster_file import check_cluster_file
from actors.cluster.connect import LOCAL_ENVIRONMENT
from fgaif_ray.cluster.node_types import PLACEHOLDER, read_cluster_file
from fgaif_ray.cluster.plan import plan_cluster
from fgaif_ray.config import load_config
from fgaif_ray.errors import UserError
from scripts.set_up import locked_entries

RAY_FILES = [ROOT / "cluster.yaml", ROOT / "deploy" / "gcp.yaml"]
KUBERAY = ROOT / "deploy" / "kuberay"
MANIFESTS = [KUBERAY / name for name in ("raycluster.yaml", "rayjob.yaml", "rayservice.yaml")]
SELECTORS = {
    "inference": ("sample.engine", "label.verifier.engine", "serve", "align.rollout.engine", "evaluate.engine"),
    "training": ("rewards", "align"),
    "data": ("label.extractor",),
}
LABELS = [f"{section}.label_selector.role={role}" for role, sections in SELECTORS.items() for section in sections]
SECRET_NAMES = re.compile(r"(token|key|secret|password)$", re.IGNORECASE)

# What KubeRay 1.7 knows of each kind of object here; the manifests passed its own schemas when they were written.
CLUSTER_KEYS = {
    "rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs",
}  # fmt: skip
SPEC_KEYS = {
    "RayCluster": CLUSTER_KEYS,
    "RayJob": {
        "entrypoint", "submissionMode", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "activeDeadlineSeconds",
        "backoffLimit", "rayClusterSpec",
    },
    "RayService": {"serveConfigV2", "upgradeStrategy", "excludeHeadPodFromServeSvc", "rayClusterConfig"},
}  # fmt: skip
GROUP_KEYS = {
    "groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds", "labels", "rayStartParams", "template",
}  # fmt: skip
POD_KEYS = {
    "automountServiceAccountToken", "securityContext", "terminationGracePeriodSeconds", "tolerations", "containers",
    "volumes",
}  # fmt: skip
CONTAINER_KEYS = {
    "name", "image", "securityContext", "env", "envFrom", "ports", "resources", "readinessProbe", "livenessProbe",
    "volumeMounts",
}  # fmt: skip


def load(path: Path) -> dict[str, Any]:
    (document,) = yaml.safe_load_all(path.read_text())
    assert isinstance(document, dict)
    return document


def cluster_of(path: Path) -> dict[str, Any]:
    spec = load(path)["spec"]
    cluster: dict[str, Any] = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    return cluster


def pods(path: Path) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Group name, group and pod template's spec."""
    cluster = cluster_of(path)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group.get("groupName", "head"), group, group["template"]["spec"]


def leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, str(key))
    elif isinstance(tree, list):
        for value in tree:
            yield from leaves(value, name)
    else:
        yield name, tree


@pytest.mark.parametrize("path", RAY_FILES, ids=lambda path: path.name)
def test_ray_accepts_the_cluster_file(path: Path) -> None:
    prepared = check_cluster_file(path)
    types = prepared["available_node_types"]
    assert (types["head"]["resources"], prepared["head_node_type"]) == ({"CPU": 0}, "head")
    assert all(entry["min_workers"] == 0 for entry in types.values())
    assert set(types) == {"head", "data", "inference", "training"}


@pytest.mark.parametrize("path", RAY_FILES, ids=lambda path: path.name)
def test_training_keeps_its_machines_and_the_rest_may_lose_them(path: Path) -> None:
    types = load(path)["available_node_types"]
    spot = {
        name
        for name, entry in types.items()
        if "InstanceMarketOptions" in entry["node_config"]
        or {"preemptible": True} in entry["node_config"].get("scheduling", [])
    }
    assert spot == {"data", "inference"}


@pytest.mark.parametrize("path", RAY_FILES, ids=lambda path: path.name)
def test_the_dashboard_listens_on_loopback_and_wants_a_token(path: Path) -> None:
    tree = load(path)
    (start,) = (line for line in tree["head_start_ray_commands"] if "ray start" in line)
    assert "--dashboard-host=127.0.0.1" in start
    assert "--env RAY_AUTH_MODE=token" in tree["docker"]["run_options"]
    assert "~/.ray/auth_token" in tree["file_mounts"]


@pytest.mark.parametrize("path", RAY_FILES, ids=lambda path: path.name)
def test_nothing_is_installed_when_a_node_starts(path: Path) -> None:
    prepared = check_cluster_file(path)
    assert [prepared[name] for name in ("setup_commands", "head_setup_commands", "worker_setup_commands")] == [[]] * 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_worker": 3}, "max_worker"),
        ({"head_node_type": "boss"}, "head_node_type"),
        ({"max_workers": -1}, "max_workers"),
        ({"available_node_types": {"head": {"resources": {"CPU": 0.5}, "node_config": {}}}}, "integer"),
    ],
)
def test_a_file_that_ray_would_refuse_is_one_sentence(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(load(ROOT / "cluster.yaml") | change))
    with pytest.raises(UserError, match=said):
        check_cluster_file(path)


@pytest.mark.parametrize("path", [*RAY_FILES, MANIFESTS[0]], ids=lambda path: path.name)
@pytest.mark.parametrize("name", ["shapes", "llava-1.5-7b"])
def test_every_shipped_configuration_can_run_on_every_shipped_cluster(path: Path, name: str) -> None:
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    assert all(row.node_types for row in plan_cluster(config, read_cluster_file(path)))


@pytest.mark.parametrize("path", [*RAY_FILES, MANIFESTS[0]], ids=lambda path: path.name)
def test_with_labels_every_stage_lands_on_its_own_nodes(path: Path) -> None:
    config = load_config(ROOT / "configs" / "llava-1.5-7b.yaml", LABELS)
    for row in plan_cluster(config, read_cluster_file(path)):
        wanted = {role for role, sections in SELECTORS.items() if row.request.section in sections}
        if row.request.label_selector:
            assert set(row.node_types) == wanted


def test_placeholders_are_found() -> None:
    assert read_cluster_file(ROOT / "cluster.yaml").placeholders[0] == "docker.image"


@pytest.mark.parametrize("path", [*RAY_FILES, *MANIFESTS], ids=lambda path: path.name)
def test_no_secret_stands_in_a_file(path: Path) -> None:
    texts = [
        (name, value) for name, value in leaves(load(path)) if isinstance(value, str) and SECRET_NAMES.search(name)
    ]
    # A mount of the user's own token file and the name of a secret's key are all that may be named so.
    allowed = {"~/.ray/auth_token", "nvidia.com/gpu", "install-nvidia-driver", "FGAIF_REWARD_TOKEN"}
    assert {value for _, value in texts} <= allowed


def test_pods_of_the_endpoints_get_the_token_that_they_ask_for_and_no_other_secret() -> None:
    for _, _, pod in pods(KUBERAY / "rayservice.yaml"):
        for container in pod["containers"]:
            assert "envFrom" not in container
            [variable] = container["env"]
            assert variable["name"] == variable["valueFrom"]["secretKeyRef"]["key"] == "FGAIF_REWARD_TOKEN"


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_hold_only_keys_that_kuberay_knows(path: Path) -> None:
    document = load(path)
    assert document["apiVersion"] == "ray.io/v1"
    assert set(document["spec"]) <= SPEC_KEYS[document["kind"]]
    cluster = cluster_of(path)
    assert set(cluster) <= CLUSTER_KEYS
    for _, group, pod in pods(path):
        assert set(group) <= GROUP_KEYS
        assert set(pod) <= POD_KEYS
        for container in pod["containers"]:
            assert set(container) <= CONTAINER_KEYS
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_run_the_ray_of_the_lock_with_a_token_and_autoscaling(path: Path) -> None:
    cluster = cluster_of(path)
    assert f"ray=={cluster['rayVersion']}" in locked_entries(ROOT / "requirements" / "gpu.lock")
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True and cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert all(isinstance(value, str) for _, group, _ in pods(path) for value in group["rayStartParams"].values())


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_pods_run_without_privileges_with_probes_and_requests(path: Path) -> None:
    for name, group, pod in pods(path):
        assert group["template"]["metadata"]["labels"]["app.kubernetes.io/part-of"] == "fgaif", name
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True and security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert name == "head" or pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            resources = container["resources"]
            assert {"cpu", "memory"} <= set(resources["requests"])
            assert resources["requests"] == resources["limits"]
            assert {"readinessProbe", "livenessProbe"} <= set(container)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_groups_grow_from_their_least_to_their_most(path: Path) -> None:
    for name, group, _ in pods(path):
        if name != "head":
            assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
            assert group["labels"] == {"role": name}


def test_the_job_of_the_manifest_can_run_on_its_own_cluster() -> None:
    path = KUBERAY / "rayjob.yaml"
    words = shlex.split(load(path)["spec"]["entrypoint"])
    assert words[:4] == ["python", "-m", "jobs.pipeline", "--config"]
    overrides = [word for flag, word in zip(words[5::2], words[6::2], strict=True) if flag == "--set"]
    config = load_config(ROOT / "configs" / Path(words[4]).name, overrides)
    plan = plan_cluster(config, read_cluster_file(path))
    assert {(row.request.actor, *row.node_types) for row in plan if row.stage == "align"} == {
        ("Learner", "training"),
        ("RolloutWorker", "inference"),
    }


def test_the_service_of_the_manifest_is_valid_and_fits_its_own_cluster() -> None:
    from ray.serve.schema import ServeDeploySchema

    from actors.rewards.app import RewardAppArguments

    path = KUBERAY / "rayservice.yaml"
    schema = ServeDeploySchema.model_validate(yaml.safe_load(load(path)["spec"]["serveConfigV2"]))
    (application,) = schema.applications
    assert application.import_path == "actors.rewards.app:build_app"
    arguments = RewardAppArguments.model_validate(application.args)
    config = load_config(ROOT / "configs" / Path(arguments.config).name, arguments.set)
    assert (config.serve.host, config.serve.port) == (schema.http_options.host, schema.http_options.port)
    plan = plan_cluster(config, read_cluster_file(path), ("serve_rewards",))
    assert {row.request.actor: list(row.node_types) for row in plan}["SharedReward"] == ["inference"]


def test_the_network_policy_opens_nothing_but_the_endpoints_to_others() -> None:
    own, callers = yaml.safe_load_all((KUBERAY / "network-policy.yaml").read_text())
    selected = own["spec"]["podSelector"]["matchLabels"]
    assert set(own["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    for path in MANIFESTS:
        for _, group, _ in pods(path):
            assert selected.items() <= group["template"]["metadata"]["labels"].items()
    outside = [rule for rule in own["spec"]["ingress"] if "ports" in rule]
    assert [peer["podSelector"]["matchLabels"] for rule in outside for peer in rule["from"]] == [
        {"app.kubernetes.io/name": "kuberay-operator"}
    ]
    # A pod's labels are for whoever makes it to choose: without its namespace a peer could be anybody's.
    peers = [peer for rule in outside for peer in rule["from"]]
    peers += [peer for rule in own["spec"]["egress"] for peer in rule["to"] if "namespaceSelector" in peer]
    assert [set(peer["namespaceSelector"]["matchLabels"]) for peer in peers] == [{"kubernetes.io/metadata.name"}] * 2
    (rule,) = callers["spec"]["ingress"]
    assert [port["port"] for port in rule["ports"]] == [8000]
    component = callers["spec"]["podSelector"]["matchLabels"]
    services = [
        component.items() <= group["template"]["metadata"]["labels"].items() for _, group, _ in pods(MANIFESTS[2])
    ]
    assert all(services)
    assert not any(
        component.items() <= group["template"]["metadata"]["labels"].items() for _, group, _ in pods(MANIFESTS[0])
    )


def instructions() -> list[tuple[str, str]]:
    return read_instructions((ROOT / "deploy" / "Dockerfile").read_text())


def test_the_image_is_pinned_locked_and_not_root() -> None:
    found = instructions()
    bases = [words for name, words in found if name == "FROM"]
    assert [re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*(@sha256:\w{64})?", base) is not None for base in bases] == [
        True
    ]
    users = [words for name, words in found if name == "USER"]
    assert users and users[-1].isdigit() and int(users[-1]) > 0
    assert not any(name == "ADD" for name, _ in found)
    assert not any(
        SECRET_NAMES.search(word.partition("=")[0])
        for name, words in found
        for word in words.split()
        if name in ("ENV", "ARG")
    )
    installs = [words for name, words in found if name == "RUN" and "pip install" in words]
    assert len(installs) == 2 and all("--no-deps" in words for words in installs)
    assert ["--require-hashes" in words for words in installs if "--requirement" in words] == [True]


def test_the_proxies_of_the_image_are_protected_as_those_of_a_ray_that_a_job_starts() -> None:
    name = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
    words = [word for instruction, text in instructions() if instruction == "ENV" for word in text.split()]
    assert f"{name}={LOCAL_ENVIRONMENT[name]}" in words
    module, _, function = LOCAL_ENVIRONMENT[name].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_what_the_image_copies_is_there() -> None:
    for name, words in instructions():
        if name == "COPY":
            assert (ROOT / words.split()[0]).exists()


def test_the_lock_of_the_image_satisfies_the_project() -> None:
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(pin.split("==") for pin in locked_entries(ROOT / "requirements" / "gpu.lock"))
    extras = project["optional-dependencies"]
    wanted = [Requirement(text) for text in [*project["dependencies"], *extras["gpu"], *extras["cloud"]]]
    assert [str(one) for one in wanted if pins.get(canonicalize_name(one.name), "0") not in one.specifier] == []


def test_every_placeholder_is_of_the_same_form() -> None:
    for path in (*RAY_FILES, *MANIFESTS):
        found = [
            value
            for _, value in leaves(load(path))
            if isinstance(value, str) and re.search(r"replace|your-|<", value, re.I)
        ]
        assert found and all(PLACEHOLDER in value for value in found)

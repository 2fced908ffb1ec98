"""Writes deploy/grafana/fgaif-ray.json, the Grafana dashboard over what actors/metrics and Ray export.

python -m scripts.grafana_dashboard          # from the top of the repository
python -m scripts.grafana_dashboard --check  # exit status 1 where the file is not what this would write
"""

import json
import sys
from pathlib import Path
from typing import Any, Final

from actors import metrics as m
from scripts.grafana_panels import DATASOURCE, Panel, Query, of_ray, panels_of, quantile, rate, share, total, value

PATH: Final = Path(__file__).resolve().parents[1] / "deploy" / "grafana" / "fgaif-ray.json"

ROWS: Final[dict[str, tuple[Panel, ...]]] = {
    "Now": (
        Panel("Rows left", "short", (value(m.STAGE_PENDING_ROWS, "stage"),), 6, stat=True),
        Panel(
            "PPO step",
            "short",
            (value(m.PPO_STEP, legend="done"), value(m.PPO_PLANNED_STEPS, legend="planned")),
            5,
            stat=True,
        ),
        Panel("PPO goodput", "percentunit", (value(m.PPO_GOODPUT, legend="goodput"),), 4, stat=True),
        Panel("Reward requests", "reqps", (rate(m.REWARD_REQUESTS, legend="requests"),), 4, stat=True),
        Panel(
            "Scores that are not a number",
            "short",
            (total(m.REWARD_NON_FINITE, legend="items"),),
            5,
            stat=True,
            description="Stays empty as long as there is none.",
        ),
    ),
    "Sampling and labelling": (
        Panel(
            "Responses",
            "cps",
            (
                rate(m.SAMPLED_RESPONSES, "outcome"),
                rate(m.LABELLED_RESPONSES, legend="labelled"),
                rate(m.REJECTED_RESPONSES, legend="rejected by labelling"),
            ),
        ),
        Panel("Facts verified", "cps", (rate(m.VERIFIED_FACTS, "verifier", "verdict"),)),
        Panel("Extraction calls", "reqps", (rate(m.EXTRACTION_CALLS, "kind"),)),
        Panel("Failed calls", "reqps", (rate(m.EXTRACTION_FAILURES, "reason"),)),
        Panel(
            "Call latency",
            "s",
            (quantile(m.EXTRACTION_DURATION, 0.5), quantile(m.EXTRACTION_DURATION, 0.95)),
            description="Of one request, without the wait for rate limits.",
        ),
        Panel(
            "Calls that wait",
            "short",
            (rate(m.EXTRACTION_WAIT, legend="waiting for limits, budget, Retry-After"),),
            description="Seconds of waiting per second, which is the mean number of calls that wait.",
        ),
        Panel("Tokens", "cps", (rate(m.EXTRACTION_TOKENS, "kind"), rate(m.SAMPLED_TOKENS, legend="sampled")), 6),
        Panel("Money so far", "short", (total(m.EXTRACTION_COST, legend="in the price's currency"),), 6),
        Panel(
            "Answers reused",
            "percentunit",
            (
                Query(
                    f"{rate(m.EXTRACTION_REUSED).expression} / ({rate(m.EXTRACTION_REUSED).expression} + "
                    f"{rate(m.EXTRACTION_CALLS, kind='first').expression})",
                    "share of questions",
                ),
            ),
            6,
            highest=1,
        ),
        Panel("Unusable answers", "cps", (rate(m.EXTRACTION_UNUSABLE, "reason"),), 6),
        Panel("Rejected responses", "cps", (rate(m.REJECTED_RESPONSES, "reason"),)),
        Panel(
            "Verifiers disagree",
            "percentunit",
            (
                share(
                    rate(m.VERIFIER_DISAGREEMENTS, "fact_type"),
                    rate(m.VERIFIED_FACTS, "fact_type", verifier="second"),
                    "{{fact_type}}",
                ),
            ),
            highest=1,
        ),
        Panel(
            "False-accept rate",
            "percentunit",
            (
                share(
                    total(m.CONTROL_ITEMS, verdict="consistent", truth="false"),
                    total(m.CONTROL_ITEMS, truth="false"),
                    "false",
                ),
                share(
                    total(m.CONTROL_ITEMS, verdict="consistent", truth="false_with_order"),
                    total(m.CONTROL_ITEMS, truth="false_with_order"),
                    "false, with an order to say yes",
                ),
            ),
            4,
            description="Share of known-false facts that the verifier accepts.",
            highest=1,
        ),
        Panel(
            "Prefix cache",
            "percentunit",
            (
                share(
                    rate(m.VERIFIER_PROMPT_TOKENS, "verifier", cache="hit"),
                    rate(m.VERIFIER_PROMPT_TOKENS, "verifier"),
                    "{{verifier}}",
                ),
            ),
            4,
            highest=1,
        ),
    ),
    "Reward models": (
        Panel("Responses trained on", "cps", (rate(m.REWARD_TRAINING_RESPONSES, "model"),)),
        Panel(
            "Held-out balanced accuracy", "percentunit", (value(m.REWARD_TRAINING_ACCURACY, "fact_type"),), highest=1
        ),
        Panel("Held-out calibration error", "percentunit", (value(m.REWARD_TRAINING_CALIBRATION, "fact_type"),)),
    ),
    "Reward service": (
        Panel("Requests by route", "reqps", (rate(m.REWARD_REQUESTS, "route"),)),
        Panel("Requests by status", "reqps", (rate(m.REWARD_REQUESTS, "status"),)),
        Panel("Rejected requests", "reqps", (rate(m.REWARD_REJECTIONS, "code"),)),
        Panel(
            "Latency of scoring",
            "s",
            tuple(quantile(m.REWARD_REQUEST_DURATION, at, route="/v1/rewards") for at in (0.5, 0.95, 0.99)),
        ),
        Panel(
            "Latency of a batch, by model",
            "s",
            (quantile(m.REWARD_FORWARD_DURATION, 0.5, "model"), quantile(m.REWARD_FORWARD_DURATION, 0.95, "model")),
        ),
        Panel("Batch size, by model", "short", (quantile(m.REWARD_BATCH_ITEMS, 0.5, "model"),)),
        Panel("Items", "cps", (rate(m.REWARD_ITEMS, "outcome"),), 6),
        Panel("Items that wait", "short", (value(m.REWARD_WAITING_ITEMS, legend="items", function="sum"),), 6),
        Panel(
            "Queued at replicas",
            "short",
            (
                of_ray(
                    'sum by (deployment) (ray_serve_deployment_queued_queries{SESSION, application="rewards"})',
                    "{{deployment}}",
                ),
            ),
            6,
        ),
        Panel(
            "Healthy replicas",
            "short",
            (
                of_ray(
                    'sum by (deployment) (ray_serve_deployment_replica_healthy{SESSION, application="rewards"})',
                    "{{deployment}}",
                ),
            ),
            6,
        ),
    ),
    "Guard": (
        Panel("Requests to the guard by status", "reqps", (rate(m.GUARD_REQUESTS, "status"),), 6),
        Panel(
            "Latency of guarded answers",
            "s",
            tuple(quantile(m.GUARD_REQUEST_DURATION, at, route="/v1/chat/completions") for at in (0.5, 0.95)),
            6,
        ),
        Panel("Segments", "cps", (rate(m.GUARD_SEGMENTS, "outcome"),), 6),
        Panel("Answers that wait", "short", (value(m.GUARD_WAITING_ANSWERS, legend="answers", function="sum"),), 6),
    ),
    "PPO": (
        Panel("Reward by type", "short", (value(m.PPO_REWARD, "fact_type"), value(m.PPO_TOTAL_REWARD, legend="total"))),
        Panel("Hallucinated, by the reward models", "percentunit", (value(m.PPO_HALLUCINATION, "fact_type"),)),
        Panel(
            "Length and facts of a response",
            "short",
            (value(m.PPO_RESPONSE_TOKENS, legend="tokens"), value(m.PPO_FACTS, legend="facts")),
        ),
        Panel("KL to the reference", "short", (value(m.PPO_KL, legend="nats per response"),), 6),
        Panel("KL coefficient", "short", (value(m.PPO_KL_COEFFICIENT, legend="reward per nat"),), 6),
        Panel("Entropy", "short", (value(m.PPO_ENTROPY, legend="nats per token"),), 6),
        Panel(
            "Clipped tokens, explained variance",
            "percentunit",
            (value(m.PPO_CLIP, legend="clipped"), value(m.PPO_EXPLAINED_VARIANCE, legend="explained by the critic")),
            6,
        ),
        Panel("Seconds by phase", "s", (value(m.PPO_PHASE_DURATION, "phase"),)),
        Panel("Goodput", "percentunit", (value(m.PPO_GOODPUT, legend="share of the step"),), 4, highest=1),
        Panel(
            "Sampled and learnt",
            "cps",
            (
                rate(m.PPO_TOKENS, legend="tokens learnt from"),
                rate(m.ROLLOUT_TOKENS, legend="tokens sampled"),
                rate(m.ROLLOUT_RESPONSES, legend="responses sampled"),
            ),
            4,
        ),
        Panel(
            "Policy version",
            "short",
            (
                value(m.PPO_STEP, legend="learner"),
                value(m.ROLLOUT_POLICY_VERSION, legend="oldest rollout worker", function="min"),
                value(m.PPO_STALENESS, legend="staleness of the batch"),
            ),
        ),
        Panel(
            "Rollout workers",
            "s",
            (
                quantile(m.ROLLOUT_DURATION, 0.5, legend="sampling, p50"),
                quantile(m.ROLLOUT_DURATION, 0.95, legend="sampling, p95"),
                quantile(m.ROLLOUT_SYNC_DURATION, 0.95, legend="loading a version, p95"),
            ),
        ),
        Panel(
            "Engine against learner",
            "short",
            (value(m.PPO_LOG_PROB_DIFFERENCE, legend="log-probability difference, nats"),),
        ),
        Panel(
            "Guards",
            "short",
            (value(m.PPO_GUARD_STREAK, "guard"), total(m.PPO_GUARD_TRIPS, "guard", legend="stopped by {{guard}}")),
            4,
            description="Steps in a row beyond a guard's limit; the third stops the run.",
        ),
        Panel(
            "Missing and skipped",
            "short",
            (
                total(m.PPO_MISSING_REWARDS, legend="rewards missing"),
                total(m.PPO_SKIPPED_UPDATES, legend="updates skipped"),
            ),
            4,
        ),
    ),
    "Evaluation": (
        Panel("Answers so far", "short", (total(m.EVALUATION_ANSWERS, "policy", "task", outcome="answered"),), 12),
        Panel("Answers", "cps", (rate(m.EVALUATION_ANSWERS, "policy", "outcome"),), 6),
        Panel("Tokens", "cps", (rate(m.EVALUATION_TOKENS, "policy"),), 6),
    ),
    "Cluster resources (Ray's own metrics)": (
        Panel("CPU", "percent", (of_ray("ray_node_cpu_utilization{SESSION}", "{{instance}}"),), highest=100),
        Panel(
            "GPU",
            "percent",
            (of_ray("ray_node_gpus_utilization{SESSION}", "{{instance}} {{GpuIndex}}"),),
            highest=100,
        ),
        Panel(
            "GPU memory",
            "percentunit",
            (
                of_ray(
                    "ray_node_gram_used{SESSION} / (ray_node_gram_used{SESSION} + ray_node_gram_available{SESSION})",
                    "{{instance}} {{GpuIndex}}",
                ),
            ),
            highest=1,
        ),
        Panel(
            "Memory",
            "percentunit",
            (of_ray("ray_node_mem_used_host{SESSION} / ray_node_mem_total_host{SESSION}", "{{instance}}"),),
            highest=1,
        ),
        Panel(
            "Object store", "bytes", (of_ray("sum by (Location) (ray_object_store_memory{SESSION})", "{{Location}}"),)
        ),
        Panel("Free disk", "bytes", (of_ray("ray_node_disk_free{SESSION}", "{{instance}}"),)),
        Panel(
            "Logical resources in use",
            "short",
            (
                of_ray('sum by (Name) (ray_resources{SESSION, State="USED", Name="CPU"})', "{{Name}} used"),
                of_ray('sum by (Name) (ray_resources{SESSION, State="USED", Name="GPU"})', "{{Name}} used"),
                of_ray('sum by (Name) (ray_resources{SESSION, Name=~"CPU|GPU"})', "{{Name}} there"),
            ),
        ),
        Panel("Actors", "short", (of_ray('sum by (State) (ray_actors{SESSION, Source="gcs"})', "{{State}}"),)),
        Panel(
            "Workers lost",
            "short",
            (
                of_ray("sum(ray_memory_manager_worker_eviction_total{SESSION})", "killed for memory"),
                of_ray("sum(ray_node_manager_unexpected_worker_failure_total{SESSION})", "died unexpectedly"),
            ),
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it; its data source and the Ray session are variables."""
    return {
        "uid": "fgaif-ray",
        "title": "FGAIF-Ray",
        "description": "Sampling, labelling, reward models and their service, PPO and evaluation on a Ray cluster",
        "tags": ["fgaif", "ray"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "time": {"from": "now-3h", "to": "now"},
        "refresh": "30s",
        "annotations": {"list": []},
        "links": [],
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Prometheus",
                    "type": "datasource",
                    "query": "prometheus",
                    "refresh": 1,
                },
                {
                    "name": "session",
                    "label": "Ray session",
                    "type": "query",
                    "datasource": DATASOURCE,
                    "query": {"query": "label_values(ray_node_cpu_count, SessionName)", "refId": "session"},
                    "definition": "label_values(ray_node_cpu_count, SessionName)",
                    "refresh": 2,
                    "sort": 2,
                    "multi": True,
                    "includeAll": True,
                    "allValue": ".*",
                    "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
                },
            ]
        },
        "panels": panels_of(ROWS),
    }


def content() -> str:
    """The file."""
    return json.dumps(dashboard(), indent=2) + "\n"


def main() -> int:
    """Write the file, or check it."""
    if "--check" in sys.argv[1:]:
        return int(not PATH.exists() or PATH.read_text(encoding="utf-8") != content())
    PATH.parent.mkdir(parents=True, exist_ok=True)
    PATH.write_text(content(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

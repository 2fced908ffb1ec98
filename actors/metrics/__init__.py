"""Every metric that FGAIF-Ray exports; actors record, `deploy/grafana/fgaif-ray.json` shows (see docs/operations.md).

Label values are bounded: they are listed here, and a third party's own values are ``other``. Fact types are those of
the run's configuration, which are few, so that their label also takes names that are not listed (``ANY``).
"""

from typing import Final, get_args

from actors.metrics.instruments import ANY, OTHER, Counter, Gauge, Histogram, Instrument
from fgaif_ray.calls.unusable import Reason
from fgaif_ray.evaluation import GREEDY, POLICIES, SAMPLED
from fgaif_ray.evaluation.benchmarks.registry import NAMES as BENCHMARKS
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.rewards.kinds import COARSE, MULTITASK

SHARED: Final = "shared"
SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
BATCH_SIZES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
VERIFIERS: Final = ("first", "second")
VERDICTS: Final = ("consistent", "hallucinated")
_TYPES: Final = {"fact_type": (*FACT_TYPES, ANY)}

# Progress of the stages that go through rows

STAGE_PENDING_ROWS: Final = Gauge(
    name="fgaif_stage_pending_rows",
    unit="rows",
    description="Rows that a stage still has to go through; of the driver that runs it",
    labels={"stage": ("sample", "label", "second_verifier", "evaluate")},
)

# Sampling

SAMPLED_RESPONSES: Final = Counter(
    name="fgaif_sampled_responses_total",
    unit="responses",
    description="Responses that the sampling stage has sampled, taken as given, or rejected for their image",
    labels={"outcome": ("sampled", "given", "rejected")},
)
SAMPLED_TOKENS: Final = Counter(
    name="fgaif_sampled_tokens_total", unit="tokens", description="Response tokens that the sampling stage has sampled"
)

# Labelling: extraction

EXTRACTION_CALLS: Final = Counter(
    name="fgaif_extraction_calls_total",
    unit="calls",
    description="Requests sent to the extraction endpoint: first tries, retries of failed ones, and repairs of answers",
    labels={"kind": ("first", "retry", "repair")},
)
EXTRACTION_FAILURES: Final = Counter(
    name="fgaif_extraction_failures_total",
    unit="calls",
    description="Requests to the extraction endpoint that brought no answer",
    labels={"reason": ("rate_limited", "client_error", "server_error", "timeout", "connection", "cancelled", OTHER)},
)
EXTRACTION_UNUSABLE: Final = Counter(
    name="fgaif_extraction_unusable_answers_total",
    unit="answers",
    description="Paid answers of the extraction endpoint that cannot be used",
    labels={"reason": (*get_args(Reason), OTHER)},
)
EXTRACTION_REUSED: Final = Counter(
    name="fgaif_extraction_reused_answers_total",
    unit="answers",
    description="Questions whose answer was there already, so that no call was made",
)
EXTRACTION_TOKENS: Final = Counter(
    name="fgaif_extraction_tokens_total",
    unit="tokens",
    description="Tokens of answered extraction calls, as the endpoint counts them or by estimate",
    labels={"kind": ("prompt", "completion")},
)
EXTRACTION_COST: Final = Counter(
    name="fgaif_extraction_cost_total",
    unit="units of the price's currency",
    description="Money for answered extraction calls by label.extractor.price, in its currency; absent without a price",
)
EXTRACTION_DURATION: Final = Histogram(
    name="fgaif_extraction_call_duration_seconds",
    unit="seconds",
    description="Time from sending an extraction call to its answer or failure",
    boundaries=SECONDS,
)
EXTRACTION_WAIT: Final = Counter(
    name="fgaif_extraction_wait_seconds_total",
    unit="seconds",
    description="Time that extraction calls have waited for rate limits, budget or a Retry-After, summed over calls",
)

# Labelling: verification and labels

LABELLED_RESPONSES: Final = Counter(
    name="fgaif_labelled_responses_total", unit="responses", description="Responses that were labelled"
)
REJECTED_RESPONSES: Final = Counter(
    name="fgaif_rejected_responses_total",
    unit="responses",
    description="Responses that could not be labelled, by the first word of the reason",
    labels={"reason": (*get_args(Reason), "image", "fact", OTHER)},
)
VERIFIED_FACTS: Final = Counter(
    name="fgaif_verified_facts_total",
    unit="facts",
    description="Facts that a verifier has checked",
    labels={"verifier": VERIFIERS, **_TYPES, "verdict": VERDICTS},
)
VERIFIER_DISAGREEMENTS: Final = Counter(
    name="fgaif_verifier_disagreements_total",
    unit="facts",
    description="Facts on which the second verifier says otherwise than the first",
    labels=_TYPES,
)
VERIFIER_PROMPT_TOKENS: Final = Counter(
    name="fgaif_verifier_prompt_tokens_total",
    unit="tokens",
    description="Prompt tokens of verifiers that were found in the prefix cache (hit) or computed (miss)",
    labels={"verifier": VERIFIERS, "cache": ("hit", "miss")},
)
CONTROL_ITEMS: Final = Counter(
    name="fgaif_canaries_total",
    unit="facts",
    description="Facts of known truth among the verifier's questions; false_with_order also orders it to say yes",
    labels={"truth": ("true", "false", "false_with_order"), "verdict": VERDICTS},
)

# Training of reward models

_MODELS: Final = {"model": (*FACT_TYPES, MULTITASK, COARSE, ANY)}
REWARD_TRAINING_RESPONSES: Final = Counter(
    name="fgaif_reward_training_responses_total",
    unit="responses",
    description="Responses that a reward model has been trained on, each as often as it was seen",
    labels=_MODELS,
)
REWARD_TRAINING_ACCURACY: Final = Gauge(
    name="fgaif_reward_training_balanced_accuracy_ratio",
    unit="ratio",
    description="Balanced accuracy of a trained reward model on held-out images",
    labels=_TYPES,
)
REWARD_TRAINING_CALIBRATION: Final = Gauge(
    name="fgaif_reward_training_calibration_error_ratio",
    unit="ratio",
    description="Expected calibration error of a trained reward model on held-out images",
    labels=_TYPES,
)

# The reward service

HANDLE: Final = "handle"
ROUTES: Final = ("/v1/rewards", "/get_reward", "/v1/models", "/live", "/ready", "/docs", "/openapi.json", "/playground")
STATUSES: Final = tuple(
    map(str, (200, 400, 401, 404, 405, 413, 415, 422, 429, 500, 503, 504))  # what the service answers with
)
REJECTION_CODES: Final = (
    "body_too_large", "busy", "disconnected", "http_error", "image_too_large", "internal_error", "invalid_image",
    "invalid_label", "invalid_request", "invalid_token_ids", "method_not_allowed", "not_found", "not_ready",
    "invalid_text", "not_scorable", "query_mismatch", "response_mismatch", "scoring_failed", "timeout", "too_costly",
    "too_long", "unauthorized", "unavailable", "unsupported_media_type", OTHER,
)  # fmt: skip
_SCORERS: Final = {"model": (*FACT_TYPES, SHARED, ANY)}

REWARD_REQUESTS: Final = Counter(
    name="fgaif_reward_requests_total",
    unit="requests",
    description="Requests to the reward service by route and status; route handle is the PPO learner, from inside",
    labels={"route": (*ROUTES, HANDLE, OTHER), "status": (*STATUSES, OTHER)},
)
REWARD_REQUEST_DURATION: Final = Histogram(
    name="fgaif_reward_request_duration_seconds",
    unit="seconds",
    description="Time that the gateway took to answer a request",
    labels={"route": (*ROUTES, HANDLE, OTHER)},
    boundaries=SECONDS,
)
REWARD_REJECTIONS: Final = Counter(
    name="fgaif_reward_rejections_total",
    unit="requests",
    description="Requests over HTTP that were answered with an error, by its code",
    labels={"code": REJECTION_CODES},
)
REWARD_ITEMS: Final = Counter(
    name="fgaif_reward_items_total",
    unit="items",
    description="Responses that got as far as the models: scored, refused (wrong in themselves) or failed (our fault)",
    labels={"outcome": ("scored", "refused", "failed")},
)
REWARD_WAITING_ITEMS: Final = Gauge(
    name="fgaif_reward_waiting_items",
    unit="items",
    description="Responses of HTTP requests that are being scored or wait for it",
)
REWARD_BATCH_ITEMS: Final = Histogram(
    name="fgaif_reward_batch_items",
    unit="items",
    description="Responses of one batch of a reward deployment, merged over callers",
    labels=_SCORERS,
    boundaries=BATCH_SIZES,
)
REWARD_FORWARD_DURATION: Final = Histogram(
    name="fgaif_reward_forward_duration_seconds",
    unit="seconds",
    description="Time that a reward deployment took for one batch, images decoded and all",
    labels=_SCORERS,
    boundaries=SECONDS,
)
REWARD_NON_FINITE: Final = Counter(
    name="fgaif_reward_non_finite_items_total",
    unit="items",
    description="Responses whose score was NaN or infinite; they were answered with an error, never with a number",
    labels=_SCORERS,
)

# The guard

GUARD_ROUTES: Final = ("/v1/chat/completions", "/v1/models", "/live", "/ready", "/docs", "/openapi.json")
GUARD_REQUESTS: Final = Counter(
    name="fgaif_guard_requests_total",
    unit="requests",
    description="Requests to the guard by route and status",
    labels={"route": (*GUARD_ROUTES, OTHER), "status": (*STATUSES, "502", OTHER)},
)
GUARD_REQUEST_DURATION: Final = Histogram(
    name="fgaif_guard_request_duration_seconds",
    unit="seconds",
    description="Time that the guard took to answer a request, the endpoint's and the verdicts in it",
    labels={"route": (*GUARD_ROUTES, OTHER)},
    boundaries=SECONDS,
)
GUARD_SEGMENTS: Final = Counter(
    name="fgaif_guard_segments_total",
    unit="segments",
    description="Judged segments of answers that the guard has sent or cut",
    labels={"outcome": ("kept", "cut")},
)
GUARD_WAITING_ANSWERS: Final = Gauge(
    name="fgaif_guard_waiting_answers",
    unit="answers",
    description="Answers that are being written or judged",
)

# Rollouts

ROLLOUT_RESPONSES: Final = Counter(
    name="fgaif_rollout_responses_total", unit="responses", description="Responses sampled for PPO"
)
ROLLOUT_TOKENS: Final = Counter(
    name="fgaif_rollout_tokens_total", unit="tokens", description="Response tokens sampled for PPO"
)
ROLLOUT_POLICY_VERSION: Final = Gauge(
    name="fgaif_rollout_policy_version",
    unit="updates",
    description="Updates that the policy of a rollout worker has gone through",
)
ROLLOUT_SYNC_DURATION: Final = Histogram(
    name="fgaif_rollout_sync_duration_seconds",
    unit="seconds",
    description="Time that a rollout worker took to load another policy version",
    boundaries=SECONDS,
)
ROLLOUT_DURATION: Final = Histogram(
    name="fgaif_rollout_generate_duration_seconds",
    unit="seconds",
    description="Time that a rollout worker took to sample its share of a batch",
    boundaries=SECONDS,
)

# PPO, recorded by the first learner worker after each step

PHASES: Final = ("wait", "rollout", "reward", "reference", "update", "sync", "probe", "step")
GUARDS: Final = (
    "missing rewards", "non-finite streak", "KL explosion", "identical responses", "repetition",
    "unfinished responses", "length growth", "entropy collapse",
    "length collapse", "coverage collapse",
)  # fmt: skip
PPO_STEPS: Final = Counter(name="fgaif_ppo_steps_total", unit="steps", description="PPO steps done by this process")
PPO_STEP: Final = Gauge(
    name="fgaif_ppo_step", unit="steps", description="Updates that the policy has gone through, over all attempts"
)
PPO_PLANNED_STEPS: Final = Gauge(
    name="fgaif_ppo_planned_steps", unit="steps", description="Steps of the whole run (align.steps)"
)
PPO_REWARD: Final = Gauge(
    name="fgaif_ppo_reward",
    unit="weighted reward",
    description="Mean reward of a response by fact type",
    labels=_TYPES,
)
PPO_TOTAL_REWARD: Final = Gauge(
    name="fgaif_ppo_total_reward",
    unit="weighted reward",
    description="Mean reward of a response that PPO is given, before the KL",
)
PPO_HALLUCINATION: Final = Gauge(
    name="fgaif_ppo_hallucination_ratio",
    unit="ratio",
    description="Share of the segments with a fact of the type that its reward model calls hallucinated",
    labels=_TYPES,
)
PPO_FACTS: Final = Gauge(
    name="fgaif_ppo_facts_per_response",
    unit="facts",
    description="Verdicts other than absent in a response; falls where the policy learns to say less",
)
PPO_KL: Final = Gauge(
    name="fgaif_ppo_kl_nats", unit="nats", description="KL of a response to the model without adapter (k1)"
)
PPO_KL_COEFFICIENT: Final = Gauge(
    name="fgaif_ppo_kl_coefficient", unit="reward per nat", description="Present weight of the KL"
)
PPO_ENTROPY: Final = Gauge(
    name="fgaif_ppo_entropy_nats", unit="nats", description="Mean entropy of the policy per token"
)
PPO_CLIP: Final = Gauge(
    name="fgaif_ppo_clip_ratio", unit="ratio", description="Share of tokens whose policy gradient PPO's clipping cuts"
)
PPO_EXPLAINED_VARIANCE: Final = Gauge(
    name="fgaif_ppo_explained_variance_ratio",
    unit="ratio",
    description="Share of the returns' variance that the critic explained before the update",
)
PPO_RESPONSE_TOKENS: Final = Gauge(
    name="fgaif_ppo_response_tokens", unit="tokens", description="Mean length of a response"
)
PPO_PHASE_DURATION: Final = Gauge(
    name="fgaif_ppo_phase_duration_seconds",
    unit="seconds",
    description="Time that a phase of the last step took; phases may overlap, step is the whole",
    labels={"phase": PHASES},
)
PPO_GOODPUT: Final = Gauge(
    name="fgaif_ppo_goodput_ratio",
    unit="ratio",
    description="Share of the last step in which something was sampled or learnt",
)
PPO_TOKENS: Final = Counter(
    name="fgaif_ppo_tokens_total", unit="tokens", description="Response tokens that PPO has learnt from"
)
PPO_STALENESS: Final = Gauge(
    name="fgaif_ppo_staleness_updates",
    unit="updates",
    description="Updates between the policy that sampled the last batch and the one that learnt from it",
)
PPO_LOG_PROB_DIFFERENCE: Final = Gauge(
    name="fgaif_ppo_log_prob_difference_nats",
    unit="nats",
    description="Mean difference between the log-probabilities of rollout engine and learner for the same policy",
)
PPO_MISSING_REWARDS: Final = Counter(
    name="fgaif_ppo_missing_rewards_total",
    unit="responses",
    description="Responses whose reward is unavailable",
)
PPO_SKIPPED_UPDATES: Final = Counter(
    name="fgaif_ppo_skipped_updates_total",
    unit="optimiser steps",
    description="Optimiser steps left out because a gradient was not finite",
)
PPO_GUARD_STREAK: Final = Gauge(
    name="fgaif_ppo_guard_streak_steps",
    unit="steps",
    description="Steps in a row that a guard's figure is beyond its limit; the guard stops the run at its patience, 3",
    labels={"guard": GUARDS},
)
PPO_GUARD_TRIPS: Final = Counter(
    name="fgaif_ppo_guard_trips_total",
    unit="runs",
    description="Runs that a guard has stopped",
    labels={"guard": (*GUARDS, OTHER)},
)

# Evaluation

EVALUATION_ANSWERS: Final = Counter(
    name="fgaif_evaluation_answers_total",
    unit="answers",
    description="Questions of the evaluation that a policy has answered, or that were rejected for their image",
    labels={
        "policy": POLICIES,
        "task": (SAMPLED, GREEDY, *BENCHMARKS, OTHER),
        "outcome": ("answered", "rejected"),
    },
)
EVALUATION_TOKENS: Final = Counter(
    name="fgaif_evaluation_tokens_total",
    unit="tokens",
    description="Tokens of the evaluation's answers",
    labels={"policy": POLICIES},
)

METRICS: Final[dict[str, Instrument]] = {
    instrument.name: instrument for instrument in list(globals().values()) if isinstance(instrument, Instrument)
}
"""All of them, by name."""

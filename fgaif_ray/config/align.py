"""Sections of PPO."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from fgaif_ray.config.base import EngineConfig, LabelSelector, LoRAOptions, Section
from fgaif_ray.config.per_type import DEFAULT_WEIGHT, by_type

PREFERENCE_ALGORITHMS: Final = ("dpo", "c-dpo")
"""Those that learn from pairs of labelled responses."""


class PPOConfig(Section):
    """The PPO update (FGAIF section 4.1; defaults that differ from the paper: see configs/paper.yaml)."""

    epochs: int = Field(default=2, ge=1)
    """Passes over each rollout batch."""
    minibatch_size: int = Field(default=256, ge=1)
    """Responses per optimiser step, over all workers."""
    micro_batch_size: int = Field(default=16, ge=1)
    """Responses per forward and backward pass of one worker."""
    micro_batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens per forward and backward pass of one worker, prompts, image tokens and padding included; replaces
    ``micro_batch_size``. A longer response has a pass of its own."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Of the policy's adapter."""
    critic_learning_rate: float = Field(default=1e-5, gt=0)
    """Of the critic's adapter and value head."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How both learning rates fall towards zero from the end of the warm-up to ``align.steps``."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which both learning rates rise linearly."""
    clip: float = Field(default=0.2, gt=0)
    """How far the probability ratio of a token may move from 1 before its gradient is cut."""
    clip_high: float | None = Field(default=None, gt=0)
    """How far above 1 a ratio may rise before its gradient is cut, where that is not ``clip`` (DAPO's clip-higher)."""
    ratio: Literal["token", "sequence"] = "token"
    """``sequence`` clips all tokens of a response by the geometric mean of their ratios (GSPO)."""
    value_clip: float | None = Field(default=0.2, gt=0)
    """How far an update may move a value, in units of reward; null for as far as it likes. Where responses earn several
    units, a small clip bounds how fast the critic can come to expect them."""
    value_coefficient: float = Field(default=0.1, ge=0)
    """Scales the critic's gradient before it is clipped. The critic has parameters and a clip of its own, and AdamW
    does not look at the size of gradients: it matters only where ``max_grad_norm`` cuts."""
    critic_warmup_steps: int = Field(default=0, ge=0)
    """First steps in which the critic alone learns, so that the policy does not follow its first guesses."""
    target_kl: float | None = Field(default=None, gt=0)
    """Ends the epochs of a batch once the policy has moved that far from the one before the update: mean KL of a
    minibatch, nats per token (k3). None goes through all epochs."""
    loss_normalisation: Literal["token", "sequence", "constant"] = "token"
    """What a minibatch's loss is divided by: its tokens, so that all tokens count alike; for each response its own
    tokens, so that all responses count alike; or responses times ``align.rollout.max_tokens`` whatever their length
    (Dr. GRPO, arXiv 2503.20783, section 3.1)."""
    entropy_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the policy's entropy in the loss; above 0 it keeps responses varied."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount of later rewards, per token."""
    lambda_: float = Field(default=0.95, ge=0, le=1)
    """Of GAE: 1 trusts the rewards that were seen, 0 the critic."""
    whiten_advantages: bool = True
    """Bring the advantages of a batch to mean 0 and deviation 1."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Largest norm of the gradients of policy and critic, each by itself."""
    importance_cap: float = Field(default=2.0, gt=0)
    """Truncation of the importance weights between the rollout engine's and the learner's log-probabilities."""


class DPOConfig(Section):
    """Learning from preferences (``algorithm: dpo`` and ``c-dpo``): pairs made of ``feedback/``, and the update.

    A response is worth what ``align.reward`` would pay for it if the reward models said what the labels say.
    """

    beta: float = Field(default=0.1, gt=0)
    """How strongly a pair's log-probability ratios to the reference count: small lets the policy go far from it."""
    length_normalisation: bool = False
    """Divide each ratio by its tokens, so that long responses do not weigh more; ``beta`` is then some ten times as
    large."""
    margin: float = Field(default=0.5, ge=0)
    """How much more the better of a pair must be worth than the worse, in units of reward."""
    pairs_per_prompt: int = Field(default=4, ge=1)
    """The most pairs that are made of the responses to one image and prompt."""
    pairs_per_step: int = Field(default=64, ge=1)
    """Pairs of an optimiser step, over all workers; ``align.steps`` of them are made."""
    micro_batch_size: int = Field(default=8, ge=1)
    """Pairs of a forward and backward pass of one worker."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Of the policy's adapter."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the learning rate falls towards zero from the end of the warm-up to ``align.steps``."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which it rises linearly."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Largest norm of the gradients."""


class RewardComposition(Section):
    """Options of turning verdicts into token rewards."""

    value: Literal["expected", "argmax"] = "expected"
    """What a verdict is worth: ``expected`` is P(consistent) - P(hallucinated), ``argmax`` the paper's +1, -1 or 0."""
    weights: dict[str, float] = by_type(DEFAULT_WEIGHT)
    """What a verdict of each fact type counts; 0 leaves the type out of the reward."""
    scale: Literal["none", "running_std", "running_rms"] = "none"
    """What rewards of each type are divided by, so that equal weights pay types alike: their standard deviation over
    the last steps, or their root mean square (see ``fgaif_ray.rewards.scale``)."""
    scale_steps: int = Field(default=10, ge=1)
    """Steps that ``scale`` looks back at, the present one included."""
    unit: Literal["segment", "fact"] = "segment"
    """What a verdict is paid for: the ``segment``, however many facts it states, or each ``fact`` of the type in it, as
    reward models with ``rewards.fact_counts`` estimate their number (see ``fgaif_ray.rewards.fact_counts``)."""
    false_cost: float = Field(default=1.0, ge=0)
    """What a false statement costs, in units of what a true one earns. A statement pays where its probability to be
    true is above ``false_cost / (1 + false_cost)``: a half, two thirds at 2."""
    granularity: Literal["segment", "response"] = "segment"
    """``response`` pays the sum of the segments' rewards once, at the last token."""
    normalise_by_segments: bool = False
    """Divide the rewards of a response by the number of its segments, so that saying more does not by itself pay
    more."""
    missing_eos_penalty: float = Field(default=1.0, ge=0)
    """Subtracted at the last token of a response that did not end by itself."""
    length_penalty: float = Field(default=0.0, ge=0)
    """Subtracted at each token beyond ``length_target``; with ``granularity: response`` all of it at the last token."""
    length_target: int = Field(default=0, ge=0)
    """Tokens of a response without ``length_penalty``."""
    truncated: Literal["penalise", "mask"] = "penalise"
    """Responses that were cut before they ended: ``penalise`` takes ``missing_eos_penalty``, ``mask`` learns nothing
    from them."""
    failure: Literal["mask", "fail"] = "mask"
    """If a reward is unavailable: ``mask`` learns nothing from its response, ``fail`` ends the run."""

    @property
    def of_response(self) -> dict[str, Any]:
        """The settings that are about the reward of a single response (``fgaif_ray.rewards.composition``)."""
        return self.model_dump(exclude={"failure", "truncated", "scale", "scale_steps"})


class KLConfig(Section):
    """The pull towards the adapter-free backbone."""

    coefficient: float = Field(default=0.1, ge=0)
    """What a nat of KL costs, in units of reward."""
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """How the KL of a token is estimated from its log-probabilities (http://joschu.net/blog/kl-approx.html)."""
    placement: Literal["reward", "loss"] = "reward"
    """``reward``: each token's reward pays for its KL, and the advantages of the tokens before it for what they led to.
    ``loss``: a term of the policy's loss, whose gradient is that of the KL whatever the estimator."""
    target: float | None = Field(default=None, gt=0)
    """Sum of the per-token KL of a response that an adaptive controller steers to; None keeps the coefficient."""
    horizon: int = Field(default=10000, ge=1)
    """Responses over which a lasting error of 1 % moves the coefficient by about 1 %, with ``target``."""


class GuardConfig(Section):
    """Limits at which PPO stops by itself (see ``fgaif_ray.rl.guards``); null switches a guard off.

    A guard fires after ``patience`` steps in a row beyond its own.
    """

    patience: int = Field(default=3, ge=1)
    """Steps in a row beyond a threshold before the run stops."""
    baseline_steps: int = Field(default=5, ge=1)
    """First steps whose mean the length and coverage guards compare with; they cannot fire before."""
    max_kl: float | None = Field(default=2.0, gt=0)
    """KL explosion: mean KL to the reference, nats per token."""
    min_entropy: float | None = Field(default=0.01, ge=0)
    """Entropy collapse: mean entropy of the policy, nats per token."""
    min_length_share: float | None = Field(default=0.4, gt=0, lt=1)
    """Length collapse: mean response length as a share of the baseline's."""
    min_coverage_share: float | None = Field(default=0.4, gt=0, lt=1)
    """Coverage collapse: facts per response as a share of the baseline's."""
    max_identical_share: float | None = Field(default=0.9, gt=0, lt=1)
    """Identical responses: share of a step's responses that are the most common one."""
    max_repeated_share: float | None = Field(default=0.5, gt=0, lt=1)
    """Repetition: share of a step's segments that say again what their response has said, by the novelty verdicts, or
    without them by their words."""
    max_unfinished_share: float | None = Field(default=0.9, gt=0, lt=1)
    """Unfinished responses: share of a step's responses that were cut before they ended."""
    max_length_growth: float | None = Field(default=3.0, gt=1)
    """Length growth: mean response length as a multiple of the baseline's."""
    max_missing_reward_share: float | None = Field(default=0.5, gt=0, lt=1)
    """Missing rewards: share of a step's responses whose reward is unavailable."""
    max_non_finite_streak: int | None = Field(default=3, ge=1)
    """Non-finite streak: this many steps in a row with a loss, gradient or metric that is not finite."""


class RolloutConfig(Section):
    """The group of vLLM rollout workers."""

    workers: int = Field(default=1, ge=1)
    """Rollout workers, an engine each."""
    max_tokens: int = Field(default=896, ge=1)
    """The most tokens of a response."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling; 1 samples from the policy itself."""
    sync: Literal["adapter", "merged"] = "adapter"
    """How a new policy reaches the engine: its adapter, or merged weights (faster on CPU)."""
    log_prob_tolerance: float = Field(default=0.05, gt=0)
    """Largest mean difference between the engine's and the learner's log-probabilities of the same tokens after a
    sync."""
    max_staleness: Literal[0, 1] = 0
    """Updates that the policy may be ahead of the one that sampled what it learns from. 1: the next batch is sampled,
    with the policy before the update, while the learner updates; importance weights correct for it."""
    engine: EngineConfig = EngineConfig()


class WandbConfig(Section):
    """Weights & Biases; the API key is where its own tools look for it (``WANDB_API_KEY``, ``wandb login``)."""

    project: str = "fgaif-ray"
    """Where the run appears."""
    name: str | None = None
    """Of the run; None takes the name of the run folder."""
    mode: Literal["online", "offline"] = "online"
    """``offline`` writes files that `wandb sync` sends later."""


class MLflowConfig(Section):
    """An MLflow tracking server; credentials are what its client takes from the environment."""

    tracking_uri: str | None = None
    """Server or folder; None takes the environment's ``MLFLOW_TRACKING_URI`` or MLflow's default."""
    experiment: str = "fgaif-ray"
    """Where the run appears."""
    name: str | None = None
    """Of the run; None takes the name of the run folder."""


class TrackingConfig(Section):
    """Destinations of metrics beside ``metrics.jsonl`` and TensorBoard; null for nowhere."""

    wandb: WandbConfig | None = None
    mlflow: MLflowConfig | None = None


EVALUATION_DIRECTIONS: Final[Mapping[str, Literal["highest", "lowest"]]] = {
    "reward/": "highest",
    "hallucination/": "lowest",
    "facts/per_response": "highest",
    "response/repeated_share": "lowest",
    "response/unfinished_share": "lowest",
    "truth/hallucination/": "lowest",
    "truth/coverage": "highest",
}
"""Beginnings of the metrics that ``align.best_by`` may name, and which value of each is the best."""


class AlignConfig(Section):
    """Reinforcement learning on dense rewards, or learning from the preferences that labels give."""

    algorithm: Literal["ppo", "grpo", "rloo", "dpo", "c-dpo"] = "ppo"
    """How the policy learns. On rewards, by how tokens are credited: ``ppo`` with a critic; ``grpo`` and ``rloo`` by
    comparing several responses to one image and prompt (``samples_per_prompt``), without one. ``align.ppo`` has the
    settings of the update for all of them. From pairs of ``feedback/``, without rollouts and reward models: ``dpo`` of
    whole responses, ``c-dpo`` of single segments after the same context. ``align.dpo`` has their settings, and
    ``align.ppo``, ``align.kl`` and ``align.rollout`` are not read."""
    steps: int = Field(default=100, ge=1)
    """Steps of training: a batch of rollouts and its update, or a batch of pairs."""
    rollout_batch_size: int = Field(default=512, ge=1)
    """Responses per step, over all workers."""
    samples_per_prompt: int = Field(default=1, ge=1)
    """Responses to each image and prompt of a step, each with a seed of its own; ``rollout_batch_size`` counts all."""
    lora: LoRAOptions = LoRAOptions()
    ppo: PPOConfig = PPOConfig()
    dpo: DPOConfig = DPOConfig()
    reward: RewardComposition = RewardComposition()
    kl: KLConfig = KLConfig()
    guards: GuardConfig = GuardConfig()
    rollout: RolloutConfig = RolloutConfig()
    critic_from_reward: str | None = None
    """Start the critic's adapter from the reward model of this fact type (FGAIF section 4.1: the object one)."""
    checkpoint_every: int = Field(default=10, ge=1)
    """Steps between checkpoints, the most that an interruption can lose."""
    evaluate_every: int | None = Field(default=None, ge=1)
    """Steps between evaluations of the policy while it is trained: greedy responses to images that nothing is learnt
    from, judged by the reward models (``fgaif_ray.rl.held_out``). The policies before the first and after the last step
    are evaluated too. None for no evaluation."""
    evaluate_images: int = Field(default=64, ge=1)
    """Images that are held out for them, the last of those to align on. ``data.evaluate_images`` are others."""
    best_by: str | None = None
    """Metric of the evaluations whose best policy is published, with the last one beside it in ``policy/last/``:
    ``reward/total``, ``hallucination/overall``, ``facts/per_response``, ``response/repeated_share`` or
    ``response/unfinished_share`` by the reward models, ``truth/hallucination/overall`` or ``truth/coverage`` on the
    embedded world, or a type in place of ``total`` and ``overall``. Rewards, facts and coverage are best at their
    highest, the others at their lowest. None publishes the last policy."""
    best_min_facts_share: float = Field(default=0.0, ge=0)
    """A policy counts as the best only if its facts per response (on the embedded world its coverage) are at least this
    share of those before the first step, since the policy that says least is wrong least."""
    tracking: TrackingConfig = TrackingConfig()
    num_workers: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = 1
    """Workers of the learner, or the fewest and the most of an elastic one: when nodes are lost it goes on with those
    that are left, from the last checkpoint, and takes in more when they come back. The policy is the same."""
    resize_every_s: float = Field(default=60.0, gt=0)
    """Seconds between looks whether an elastic learner has room for more workers; each resize costs the steps since the
    last checkpoint."""
    worker_resource: str | None = None
    """A custom resource that nodes offer, of which each worker takes one. Elastic workers are counted by it: Ray counts
    processors and GPUs of all nodes else, whatever their labels and whoever else uses them."""
    cpus_per_worker: float = Field(default=1, gt=0)
    """Logical CPUs that each of them asks Ray for."""
    gpus_per_worker: float = Field(default=0, ge=0)
    """GPUs that each of them asks Ray for; may be a fraction."""
    activation_checkpointing: bool = False
    """Keep only the input of each decoder layer for the backward pass and compute the rest again: the same gradients,
    about a third more computation, room for larger micro-batches."""
    sharding: Literal["none", "full"] = "none"
    """``full`` shards the frozen backbone over the learner's workers (FSDP2) and gathers one layer at a time in
    each pass: the same results, for a backbone that one GPU cannot hold. Adapters stay whole in every worker."""
    label_selector: LabelSelector = {}
    """Labels of the nodes that the learner's workers may run on."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of a worker's computation; None leaves torch's choice."""

    @property
    def learns_from_preferences(self) -> bool:
        """Whether pairs of labelled responses take the place of rollouts and rewards."""
        return self.algorithm in PREFERENCE_ALGORITHMS

    @property
    def fewest_workers(self) -> int:
        """Workers that the learner cannot do without."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        """Workers that the learner has where there is room."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @model_validator(mode="after")
    def _workers_are_a_range(self) -> Self:
        if self.fewest_workers > self.most_workers:
            raise ValueError(
                f"align.num_workers=[{self.fewest_workers}, {self.most_workers}]: give the fewest first, then the most"
            )
        return self

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        if self.learns_from_preferences:
            if self.dpo.pairs_per_step < self.most_workers:
                raise ValueError(
                    f"{self.dpo.pairs_per_step} pairs a step do not go round {self.most_workers} learner workers: "
                    "raise align.dpo.pairs_per_step or lower align.num_workers"
                )
            return self
        prompts, rest = divmod(self.rollout_batch_size, self.samples_per_prompt)
        if rest:
            raise ValueError(
                f"align.rollout_batch_size counts responses: make it a multiple of align.samples_per_prompt "
                f"({self.samples_per_prompt}), not {self.rollout_batch_size}"
            )
        if prompts < self.most_workers:
            raise ValueError(
                f"{prompts} prompts a step do not go round {self.most_workers} learner workers: raise "
                "align.rollout_batch_size or lower align.num_workers"
            )
        return self

    @model_validator(mode="after")
    def _algorithm_has_what_it_needs(self) -> Self:
        if self.algorithm == "ppo":
            return self
        if self.critic_from_reward is not None:
            raise ValueError(f"align.algorithm={self.algorithm} has no critic: leave align.critic_from_reward out")
        if self.learns_from_preferences:
            return self
        if self.samples_per_prompt < 2:
            raise ValueError(
                f"align.algorithm={self.algorithm} compares responses to one image and prompt: set "
                "align.samples_per_prompt to 2 or more"
            )
        if self.algorithm != "grpo":
            return self
        if self.reward.granularity == "response" or self.reward.normalise_by_segments:
            raise ValueError(
                "align.algorithm=grpo credits segments: leave align.reward.granularity at segment and "
                "align.reward.normalise_by_segments at false"
            )
        if self.reward.scale != "none":
            raise ValueError(
                "align.algorithm=grpo divides each type's rewards by their deviation in the group: leave "
                "align.reward.scale at none"
            )
        return self

    @model_validator(mode="after")
    def _evaluations_can_be_made(self) -> Self:
        if self.evaluate_every is not None and self.learns_from_preferences:
            raise ValueError(
                f"align.algorithm={self.algorithm} has no rollout workers and no reward models to evaluate with while "
                "training: leave align.evaluate_every out"
            )
        if self.evaluate_every is not None and self.evaluate_images < self.most_workers:
            raise ValueError(
                f"align.evaluate_images={self.evaluate_images} do not go round {self.most_workers} learner workers: "
                "raise it, or lower align.num_workers"
            )
        if self.best_by is None:
            return self
        if self.evaluate_every is None:
            raise ValueError("align.best_by is a metric of the evaluations while training: set align.evaluate_every")
        if not self.best_by.startswith(tuple(EVALUATION_DIRECTIONS)):
            raise ValueError(
                f"align.best_by={self.best_by} is not a metric of the evaluations: take reward/total, "
                "hallucination/overall, facts/per_response, response/repeated_share, response/unfinished_share, "
                "truth/hallucination/overall or truth/coverage"
            )
        return self

    @model_validator(mode="after")
    def _sharding_has_shards(self) -> Self:
        if self.sharding == "full" and self.most_workers == 1:
            raise ValueError(
                "align.sharding=full cuts the backbone up over the learner's workers, and there is one: raise "
                "align.num_workers, or set align.sharding to none"
            )
        return self

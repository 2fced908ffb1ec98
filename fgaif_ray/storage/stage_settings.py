"""The settings that change the content of stages, and so their fingerprints.

Placement, numbers of workers and batch sizes are left out. A setting that came after runs had been made does not count
at its default, so that those runs keep their fingerprints.
"""

from collections.abc import Sequence
from typing import Any, Final

from fgaif_ray.config import Config, Section, VerifierConfig
from fgaif_ray.records import fingerprint
from fgaif_ray.segments import ENGLISH

_PLACEMENT: Final = frozenset(
    {
        "num_workers",
        "resize_every_s",
        "worker_resource",
        "cpus_per_worker",
        "gpus_per_worker",
        "label_selector",
        "threads",
    }
)
"""Where workers of ``torch.distributed`` run."""
REWARD_PLACEMENT: Final = _PLACEMENT | {
    "micro_batch_size",
    "temperature_scaling",  # a temperature is fitted in any case
}
"""Settings of ``rewards`` that change neither the data nor the steps of the optimiser."""
ALIGN_PLACEMENT: Final = _PLACEMENT | {
    "sharding",
    "checkpoint_every",
    "tracking",
    "guards",  # a run that a guard has stopped goes on
}
"""Settings of ``align`` that do not change the policy."""
REWARDS_LATER: Final = ("planted_share", "fact_counts", "label_noise")
ALIGN_LATER: Final = ("algorithm", "evaluate_every", "evaluate_images", "best_by", "best_min_facts_share")
PPO_LATER: Final = ("clip_high", "ratio", "critic_warmup_steps", "target_kl", "loss_normalisation")
REWARD_LATER: Final = ("truncated", "scale", "scale_steps", "unit", "false_cost")
SAMPLE_LATER: Final = ("samples_per_prompt", "shared_prefixes")
"""Settings of ``rewards``, ``align``, ``align.ppo``, ``align.reward`` and ``sample`` that came after runs had been
made: at their defaults they do not count."""


def reading_key(config: Config) -> list[dict[str, Any]]:
    """What a stage that shows images to a model depends on beside them: limits of pixels and variables of chat
    templates, if any is set.

    Stages that come after another one of this kind have it from there.
    """
    template = config.data.chat_template_kwargs
    return [part for part in (config.data.pixel_limits, {"chat_template_kwargs": template} if template else {}) if part]


def language_key(config: Config) -> list[dict[str, str]]:
    """What a stage depends on that cuts responses into segments, if they are not English.

    Stages that come after another one of this kind have it from there.
    """
    language = config.data.language
    return [{"language": language}] if language != ENGLISH else []


def limit_key(config: Config) -> list[dict[str, int]]:
    """What decides which rows are rejected for their number of images, if it is set."""
    most = config.data.images_per_prompt
    return [{"images_per_prompt": most}] if most > 1 else []


def blind_key(config: Config, *scopes: str) -> list[dict[str, str]]:
    """What a stage depends on whose models are shown other images."""
    hidden = config.data.blind.model_dump(include={*scopes})
    return [{f"blind_{scope}": mode} for scope, mode in sorted(hidden.items()) if mode != "none"]


def several_key(config: Config) -> list[str]:
    """What verdicts depend on where prompts may have several images: how facts about several are asked."""
    return ["several-1"] if config.data.images_per_prompt > 1 else []


def verdict_key(verifier: VerifierConfig) -> str:
    """Equal for verifiers that give equal P(yes)."""
    return fingerprint(verifier.model_dump(include={"model", "prompt"}), verifier.engine.dtype)


def sample_settings(config: Config) -> dict[str, Any]:
    """How the policy answers."""
    sample = config.sample
    later = {*SAMPLE_LATER} - {*_at_default(sample, SAMPLE_LATER)}
    return sample.model_dump(include={"temperature", "top_p", "max_tokens", *later})


def extraction_settings(config: Config) -> dict[str, Any]:
    """What the extractor is asked. An endpoint may move between two runs."""
    return config.label.extractor.model_dump(
        include={"model", "serve_model", "compact_json", "prompt", "mode", "max_tokens"}
    )


def reward_settings(config: Config) -> dict[str, Any]:
    """What changes the data of reward models or the steps of their optimiser."""
    rewards = config.rewards
    return rewards.model_dump(mode="json", exclude={*REWARD_PLACEMENT, *_at_default(rewards, REWARDS_LATER)})


def align_settings(config: Config) -> dict[str, Any]:
    """What changes a policy that learns from its rollouts, but for how these are drawn."""
    left_out = {*ALIGN_PLACEMENT, "rollout", "dpo", *_at_default(config.align, ALIGN_LATER)}
    align = config.align.model_dump(exclude=left_out)
    for part, later in (("ppo", PPO_LATER), ("reward", REWARD_LATER)):
        for name in _at_default(getattr(config.align, part), later):
            del align[part][name]
    return align


def preference_settings(config: Config) -> dict[str, Any]:
    """What changes a policy that learns from preferences."""
    align = config.align.model_dump(include={"algorithm", "steps", "lora", "dpo", "reward"})
    del align["dpo"]["micro_batch_size"]
    # Labels are certain, nobody has to be asked for them, and there is no spread of rewards over steps.
    for name in ("value", "truncated", "failure", "scale", "scale_steps"):
        del align["reward"][name]
    return align


def _at_default(section: Section, names: Sequence[str]) -> list[str]:
    """Those of a section's keys that have their defaults."""
    return [name for name in names if getattr(section, name) == type(section).model_fields[name].default]

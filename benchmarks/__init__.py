from typing import Final

PAPER_SETUP: Final = (
    "run.fact_types=[existence, attribute, relation]",
    "rewards.kind=separate",
    "rewards.fact_counts=false",
    "align.algorithm=ppo",
    "align.samples_per_prompt=1",
    "align.reward.unit=segment",
    "align.reward.false_cost=1",
)
"""What rewards and PPO are measured with, whatever the configuration has: the paper's three reward models and PPO."""

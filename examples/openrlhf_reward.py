r"""OpenRLHF, rewarded by the reward service.

    FGAIF_REWARD_URL=http://HOST:PORT POLICY=Qwen/Qwen3.5-2B python -m openrlhf.cli.train_ppo_ray \
        --reward.remote_url examples/openrlhf_reward.py --data.label_key reference ...

examples/openrlhf_ppo.sh has all of it. The dataset's column `reference` holds {"image": path or data URL, "prompt": the
question}. Try it without a trainer:

    FGAIF_REWARD_URL=http://HOST:PORT POLICY=... python examples/openrlhf_reward.py cat.png "What is there?" "A cat."
"""

import os
import sys
from functools import cache
from typing import Any

from fgaif_ray.adapters.common import service_url, shared_client
from fgaif_ray.adapters.openrlhf import OpenRLHFRewards


@cache
def rewards() -> OpenRLHFRewards:
    """The rewards of the policy named by POLICY, whose special tokens are in the queries."""
    from transformers import AutoTokenizer

    special_tokens = AutoTokenizer.from_pretrained(os.environ["POLICY"]).all_special_tokens
    return OpenRLHFRewards(shared_client(service_url(None)), special_tokens)


def reward_func(queries: list[str], prompts: list[str], labels: list[Any], **kwargs: Any) -> dict[str, Any]:
    """What OpenRLHF looks for in this file."""
    return rewards()(queries, prompts, labels, **kwargs)


if __name__ == "__main__":
    image, question, answer = sys.argv[1:]
    print(reward_func([f"USER: {question} {answer}"], [f"USER: {question}"], [{"image": image, "prompt": question}]))

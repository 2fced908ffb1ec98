r"""verl, rewarded by the reward service.

    FGAIF_REWARD_URL=http://HOST:PORT python -m verl.trainer.main_ppo \
        reward.custom_reward_function.path=examples/verl_reward.py ...

examples/verl_grpo.sh has all of it. The dataset's `extra_info` holds `image` (path, bytes or data URL) and `question`.
For the synchronous reward manager `batch`, add reward.custom_reward_function.name=compute_score_batch. Try it without a
trainer:

    FGAIF_REWARD_URL=http://HOST:PORT python examples/verl_reward.py cat.png "What is there?" "A cat."
"""

import sys

from fgaif_ray.adapters.verl import compute_score, compute_score_batch

__all__ = ["compute_score", "compute_score_batch"]

if __name__ == "__main__":
    image, question, answer = sys.argv[1:]
    print(compute_score_batch(["example"], [answer], [None], [{"image": image, "question": question}]))

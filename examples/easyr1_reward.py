r"""EasyR1, rewarded by the reward service.

    FGAIF_REWARD_URL=http://HOST:PORT python -m verl.trainer.main data.answer_key=reference \
        worker.reward.reward_function=examples/easyr1_reward.py:compute_score ...

examples/easyr1_grpo.sh has all of it. The dataset's column `reference` holds {"image": path or data URL, "prompt": the
question}. Try it without a trainer:

    FGAIF_REWARD_URL=http://HOST:PORT python examples/easyr1_reward.py cat.png "What is there?" "A cat."
"""

import sys

from fgaif_ray.adapters.easyr1 import REWARD_NAME, REWARD_TYPE, compute_score

__all__ = ["REWARD_NAME", "REWARD_TYPE", "compute_score"]

if __name__ == "__main__":
    image, question, answer = sys.argv[1:]
    print(compute_score([{"response": answer, "ground_truth": {"image": image, "prompt": question}}]))

"""TRL's GRPO, rewarded by the reward service: one function for each of its fact types.

    pip install trl==1.16.0 datasets
    python examples/trl_grpo.py --url http://HOST:PORT

trains the tiny policy of the embedded world on rendered scenes; exchange `scenes` and `--model` for your own.
"""

import argparse
from typing import Any

from fgaif_ray.adapters.trl import TRLRewards
from fgaif_ray.serving.client import RewardClient
from fgaif_ray.shapes.render import render
from fgaif_ray.shapes.scenes import draw_scenes


def scenes(count: int) -> list[dict[str, Any]]:
    """Rows as TRL wants them of vision-language data: a chat and an image."""
    chat = [{"role": "user", "content": "Describe this image in detail."}]
    return [{"prompt": chat, "image": render(scene)} for scene in draw_scenes("train", range(count))]


def make_trainer(url: str, model: str, steps: int, output: str) -> Any:
    """A `GRPOTrainer` with a reward per fact type; the token comes from FGAIF_REWARD_TOKEN."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import GRPOConfig, GRPOTrainer

    rewards = TRLRewards(RewardClient(url)).functions
    config = GRPOConfig(
        output_dir=output,
        max_steps=steps,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=64,
        learning_rate=1e-5,
        reward_weights=[1.0] * len(rewards),
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        bf16=torch.cuda.is_available(),
    )
    return GRPOTrainer(
        model=AutoModelForImageTextToText.from_pretrained(model),
        reward_funcs=rewards,
        args=config,
        train_dataset=Dataset.from_list(scenes(64)),
        processing_class=AutoProcessor.from_pretrained(model, padding_side="left"),
    )


def main() -> None:
    """Train, and print what the rewards were."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="root of the reward service")
    parser.add_argument("--model", default="fgaif_ray/shapes/checkpoints/policy")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", default="runs/trl")
    options = parser.parse_args()
    trainer = make_trainer(options.url, options.model, options.steps, options.output)
    trainer.train()
    trainer.save_model()
    print({name: value for name, value in trainer.state.log_history[-2].items() if name.startswith("rewards/")})


if __name__ == "__main__":
    main()

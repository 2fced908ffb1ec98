r"""SkyRL, with a reward for every segment of a response.

    FGAIF_REWARD_URL=http://HOST:PORT python examples/skyrl_rewards.py generator.vision_language_generator=true \
        generator.step_wise_trajectories=false trainer.algorithm.advantage_estimator=reinforce++ ...

takes what SkyRL's own entry point takes (examples/skyrl_dense.sh has all of it). The prompts hold the images, or the
dataset has a column `image`. Its column `env_class` may name `one_answer`: one turn, whose reward is the service's.
"""

import sys
from typing import Any

from fgaif_ray.adapters.common import service_url
from fgaif_ray.adapters.skyrl import DenseRewardGenerator, DenseRewards
from fgaif_ray.serving.client import AsyncRewardClient


def with_dense_rewards(generator: Any, tokenizer: Any, url: str) -> DenseRewardGenerator:
    """The generator, its rewards replaced by those of the service."""
    return DenseRewardGenerator(generator, DenseRewards(AsyncRewardClient(url), tokenizer))


def register_one_answer() -> None:
    """Tell SkyRL of an environment that takes one answer and pays nothing itself."""
    from skyrl_gym.envs import register
    from skyrl_gym.envs.base_text_env import BaseTextEnv, BaseTextEnvStepOutput
    from skyrl_gym.envs.registration import registry

    class OneAnswer(BaseTextEnv):  # type: ignore[misc, unused-ignore]
        def __init__(self, env_config: Any = None, extras: Any = None) -> None:  # noqa: ARG002 # by name
            super().__init__()

        def step(self, action: str) -> BaseTextEnvStepOutput:  # noqa: ARG002
            return BaseTextEnvStepOutput(observations=[], reward=0.0, done=True, metadata={})

    if "one_answer" not in registry:
        register(id="one_answer", entry_point=OneAnswer)


def main(arguments: list[str]) -> None:
    """Run SkyRL's own training with the generator exchanged."""
    import ray
    from skyrl.train.config import SkyRLTrainConfig
    from skyrl.train.entrypoints.main_base import BasePPOExp
    from skyrl.train.utils import validate_cfg
    from skyrl.train.utils.utils import initialize_ray

    url = service_url(None)

    class Experiment(BasePPOExp):  # type: ignore[misc, unused-ignore]
        def get_generator(self, cfg: Any, tokenizer: Any, inference_engine_client: Any) -> Any:
            register_one_answer()  # in the process that generates
            inner = super().get_generator(cfg, tokenizer, inference_engine_client)
            return with_dense_rewards(inner, tokenizer, url)

    config = SkyRLTrainConfig.from_cli_overrides(arguments)
    validate_cfg(config)
    initialize_ray(config)
    ray.get(ray.remote(num_cpus=1)(lambda: Experiment(config).run()).remote())


if __name__ == "__main__":
    main(sys.argv[1:])

"""The reward service for those who run Serve applications themselves: `serve deploy`, KubeRay's RayService.

    applications:
      - name: rewards
        route_prefix: /
        import_path: actors.rewards.app:build_app
        args: {config: configs/llava-1.5-7b.yaml, set: ["run.dir=s3://bucket/run", "serve.host=0.0.0.0"]}

It is the application of `python -m jobs.serve_rewards`. Serve itself decides where it listens: its ``http_options``
take the place of ``serve.host`` and ``serve.port``, and without a host there it is 0.0.0.0.
"""

from pydantic import BaseModel, ConfigDict
from ray import serve

from actors.rewards.service import build_application, serve_where_serve_listens
from fgaif_ray.config import load_config
from fgaif_ray.rewards.files import published_reward_folders


class RewardAppArguments(BaseModel):
    """The ``args`` of the application, those of a job's command line."""

    model_config = ConfigDict(extra="forbid")

    config: str
    """Path of the configuration, in the working directory of the application or absolute."""
    set: list[str] = []
    """Changes of single keys, ``section.key=value``."""


def build_app(arguments: RewardAppArguments) -> serve.Application:
    """Build the application from the reward models of the run.

    Raises:
        UserError: the configuration is wrong, a reward model is missing, or Serve listens on the network and the
            environment holds no FGAIF_REWARD_TOKEN, or Ray takes commands from anybody there.
    """
    config = serve_where_serve_listens(load_config(arguments.config, arguments.set))
    return build_application(
        config, published_reward_folders(config), f"http://{config.serve.host}:{config.serve.port}"
    )

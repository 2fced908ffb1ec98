"""Serve the run's reward models over HTTP until Ctrl-C.

Reads `rewards/` of the run's folder. The environment variable FGAIF_REWARD_TOKEN, where set, is the bearer token that
requests must carry; without one the service listens on loopback only.

Examples:
    fgaif serve-rewards --config configs/serve-rewards.yaml
    fgaif serve-rewards --config my.yaml --set serve.port=8001
"""

import os
import sys

from fgaif_ray.config import Config
from fgaif_ray.progress import say
from fgaif_ray.rewards.files import published_reward_folders
from fgaif_ray.serving.wire import TOKEN_VARIABLE
from jobs.cli import ConfigOption, SetOption, main, read_config


def run(config: Config) -> None:
    """Deploy the reward service, print how to call it, and stay until SIGINT or SIGTERM.

    Raises:
        UserError: a reward model is missing, or the service cannot be deployed as configured.
    """
    from actors.cluster.connect import cluster_address, connect
    from actors.cluster.until_stopped import serve_until_stopped
    from actors.rewards import service as reward_service
    from fgaif_ray.vlm.checkpoint import check_vision_model

    folders = published_reward_folders(config)
    if cluster_address(config) is None:
        check_vision_model(config.rewards.backbone, config.policy.allow_untested)

    def start() -> None:
        say("serve_rewards: starting (about 20 s, longer for large models)")
        info = reward_service.deploy(config, folders)
        say(invitation(info.url, info.model_version))

    with connect(config):
        serve_until_stopped("serve_rewards", start, lambda: reward_service.shutdown(config.serve.app_name))
    say("serve_rewards: stopped")


def invitation(url: str, version: str) -> str:
    """Say where the reward models of a version are served, and how to try them."""
    return f"""serve_rewards: reward models {version} at {url} (API: {url}/docs)
Playground: {url}/playground
Try it:
{_example(url)}
Ctrl-C stops it."""


def _example(url: str) -> str:
    token = f'  -H "Authorization: Bearer ${TOKEN_VARIABLE}" \\\n' if os.environ.get(TOKEN_VARIABLE) else ""
    return f"""base64 < image.png | tr -d '\\n' | \\
  sed 's/.*/{{"items": [{{"image": "&", "prompt": "Describe this image.", "response": "A red circle."}}]}}/' | \\
  curl {url}/v1/rewards -H "Content-Type: application/json" \\
{token}  --data-binary @-"""


def command(config: ConfigOption, overrides: SetOption = None) -> None:
    """What `fgaif serve-rewards` does."""
    run(read_config(config, overrides))


if __name__ == "__main__":
    sys.exit(main("serve-rewards"))

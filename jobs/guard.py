"""Stand before an OpenAI-compatible endpoint and judge its answers about images, until Ctrl-C.

Clients keep their code and change their base URL. --mode annotate leaves answers as they are and adds the verdicts in a
field `fgaif`; best-of-n asks for several answers and returns the best; strip cuts what is judged hallucinated.

The verdicts come from a running reward service (--rewards), or from the reward models of a run (--config), which are
served beside the guard. OPENAI_API_KEY is the key of the endpoint, FGAIF_REWARD_TOKEN that of the reward service.
FGAIF_GUARD_TOKEN, where set, is what callers must send; without it the guard listens on loopback only.

Examples:
    fgaif guard --upstream http://127.0.0.1:8001/v1 --rewards http://127.0.0.1:8000
    fgaif guard --upstream http://127.0.0.1:8001/v1 --config configs/shapes.yaml --mode strip
    fgaif guard --upstream https://api.example.com/v1 --rewards http://127.0.0.1:8000 --set guard.n=8
"""

import sys
from typing import Annotated

import typer

from fgaif_ray.config import Config, GuardTree, change_config, guard_tree
from fgaif_ray.errors import UserError
from fgaif_ray.progress import say
from fgaif_ray.rewards.files import published_reward_folders
from fgaif_ray.serving.bearer_token import read_token
from jobs.cli import SetOption, main, read_config

REWARDS_NAME = "guard-rewards"
"""Of the application with the reward models of a run, below whose name they are reached."""


def run(config: Config | GuardTree) -> None:
    """Deploy the guard, print how to call it, and stay until SIGINT or SIGTERM.

    Raises:
        UserError: endpoint or reward service are not named, or the guard cannot be deployed as configured.
    """
    if config.guard.upstream is None:
        raise UserError("Give the endpoint to guard: --upstream http://HOST:PORT/v1 (guard.upstream).")
    if config.guard.rewards is None and not isinstance(config, Config):
        raise UserError(
            "Give --rewards http://HOST:PORT of a running reward service, or --config of a run whose reward models are "
            "to be served."
        )
    folders = published_reward_folders(config) if config.guard.rewards is None and isinstance(config, Config) else None
    from actors.cluster.connect import connect
    from actors.cluster.until_stopped import serve_until_stopped
    from actors.guard import service
    from actors.rewards import service as reward_service

    def start() -> None:
        rewards = config.guard.rewards
        if folders is not None and isinstance(config, Config):
            say("guard: starting the reward models (about 20 s, longer for large models)")
            rewards = reward_service.deploy(_beside_guard(config), folders).url
        assert rewards is not None
        settings = service.guard_settings(config, config.guard, rewards, read_token(service.KEY_VARIABLE))
        url = service.deploy(settings)
        say(f"guard: {config.guard.mode} before {settings.upstream} at {url}/v1 (API: {url}/docs)")
        say(f"Clients work as they are with OPENAI_BASE_URL={url}/v1. Ctrl-C stops it.")

    def stop() -> None:
        service.shutdown(config.guard.app_name)
        if folders is not None:
            reward_service.shutdown(REWARDS_NAME)

    with connect(config):
        serve_until_stopped("guard", start, stop)
    say("guard: stopped")


def _beside_guard(config: Config) -> Config:
    """The run's reward service where the guard listens, below a name of its own."""
    guard = config.guard
    return change_config(
        config,
        [
            f"serve.app_name={REWARDS_NAME}",
            f"serve.host={guard.host}",
            f"serve.port={guard.port}",
            f"serve.request_timeout_s={guard.request_timeout_s}",
        ],
    )


def command(
    upstream: Annotated[
        str | None, typer.Option(metavar="URL", help="endpoint to guard, with /v1", show_default=False)
    ] = None,
    rewards: Annotated[
        str | None, typer.Option(metavar="URL", help="root of a running reward service", show_default=False)
    ] = None,
    mode: Annotated[
        str | None, typer.Option(metavar="MODE", help="annotate, best-of-n or strip", show_default=False)
    ] = None,
    config: Annotated[
        str | None,
        typer.Option("--config", metavar="FILE", help="YAML file of a run; not needed with --rewards"),
    ] = None,
    overrides: SetOption = None,
) -> None:
    """What `fgaif guard` does."""
    flags = {"upstream": upstream, "rewards": rewards, "mode": mode}
    changes = [*(overrides or ()), *(f"guard.{name}={value}" for name, value in flags.items() if value is not None)]
    run(guard_tree(changes) if config is None else read_config(config, changes))


if __name__ == "__main__":
    sys.exit(main("guard"))

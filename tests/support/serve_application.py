"""The shipped application of Ray Serve."""

from pathlib import Path
from typing import Any

import yaml

APPLICATION = "configs/serve-rewards.yaml"


def application_of(repository: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((repository / APPLICATION).read_text())
    return loaded

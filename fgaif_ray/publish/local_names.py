"""Paths of this machine, which have no meaning elsewhere and may tell more than a person wants to publish."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fgaif_ray.config import Config


def is_local_model(model: str) -> bool:
    """Whether a model is a folder here, not a name on the Hub."""
    return os.path.isdir(model) or model.startswith(("/", "./", "../", "~")) or "://" in model or model.count("/") > 1


SHORTEST: Final = 3
"""Characters of a path that is looked for: ``/`` and ``.`` are everywhere."""


@dataclass(frozen=True, slots=True)
class LocalNames:
    """What is written in place of local paths.

    Example: ``LocalNames({"/home/me/models/policy": "policy"}).hide("base: /home/me/models/policy")``
    """

    names: Mapping[str, str]
    """Path -> what stands for it."""

    @classmethod
    def of(cls, config: Config) -> "LocalNames":
        """The paths of a configuration: models by the name of their folder, the run and its images by what they are."""
        verifiers = [one for one in (config.label.verifier, config.label.second_verifier) if one is not None]
        models = [config.policy.model, config.rewards.backbone, *(one.model for one in verifiers)]
        models += [config.label.extractor.serve_model or "", config.label.extractor.model]
        names = {model: os.path.basename(model.rstrip("/")) for model in models if model and is_local_model(model)}
        names |= {config.run.dir: "RUN"} | ({config.data.path: "IMAGES"} if config.data.path else {})
        names |= {os.path.abspath(path): name for path, name in names.items() if "://" not in path}
        return cls({path: name for path, name in names.items() if len(path) >= SHORTEST})

    def hide(self, text: str) -> str:
        """Replace the paths in a text, longest first."""
        for path in sorted(self.names, key=len, reverse=True):
            text = text.replace(path, self.names[path])
        return text

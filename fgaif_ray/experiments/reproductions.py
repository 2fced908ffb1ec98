"""Published results that a frozen configuration would measure, and what it needs before it can."""

import difflib
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from fgaif_ray import storage
from fgaif_ray.cluster.resources import stage_requests
from fgaif_ray.config import CallsConfig, Config
from fgaif_ray.errors import UserError
from fgaif_ray.evaluation import AFTER, BEFORE
from fgaif_ray.evaluation.benchmarks.images import ImageFolder
from fgaif_ray.evaluation.benchmarks.registry import REGISTRY, load_benchmark, settings_of
from fgaif_ray.images import find_images
from fgaif_ray.vlm.checkpoint import check_checkpoint, check_vision_model

PLACES: Final = re.compile(
    r"run\.(?:dir|overwrite)|ray\..+|data\.path|evaluate\.benchmarks\.\w+\.(?:path|images)"
    r"|(?:label\.extractor|evaluate\.judge)\.(?:api_key_env|budget|cache|price\..+|requests_per_minute"
    r"|tokens_per_minute|concurrency)"
)
"""Keys that say where things lie, how fast they go and what they cost: they change no result."""
OPENAI: Final = "api.openai.com"
_NUMBER: Final = re.compile(r"(\d{6,})\.\w+$")
"""The number of a COCO image in the name of its file."""


@dataclass(frozen=True, slots=True)
class PublishedResult:
    """One metric of a paper, before and after its training.

    Example: ``PublishedResult("obj_halbench", "response", 15.0, 4.7)``
    """

    benchmark: str
    figure: str
    """Name of the metric in `benchmarks.json`."""
    before: float
    """As printed, in percent."""
    after: float

    def of(self, which: str) -> float:
        """The printed value of a policy."""
        return self.before if which == BEFORE else self.after


@dataclass(frozen=True, slots=True)
class Reproduction:
    """A frozen configuration and the results that it is to be compared with."""

    title: str
    source: str
    file: str
    """Below the repository's root."""
    digest: str
    """sha256 of the file."""
    results: tuple[PublishedResult, ...]
    gpu_gb: int = 80
    """Memory of the GPUs that it is written for."""

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """The benchmarks of the results, each once."""
        return tuple(dict.fromkeys(result.benchmark for result in self.results))


REPRODUCTIONS: Final[Mapping[str, Reproduction]] = {
    "sentinel": Reproduction(
        "Qwen2.5-VL-7B on Object HalBench, beside SENTINEL",
        "arXiv 2507.12455",
        "configs/reproduce/sentinel.yaml",
        "e6c7663e10784e6f7e5cf0161c9bd1bab0984198bdb5f0ee8003488f7b52bd4e",
        (
            PublishedResult("obj_halbench", "response", 15.0, 4.7),
            PublishedResult("obj_halbench", "mention", 9.2, 2.8),
        ),
    ),
}


@dataclass(frozen=True, slots=True)
class Requirement:
    """Something that a reproduction needs.

    Example: ``Requirement("weights", "Qwen/Qwen2.5-VL-7B-Instruct", "... is not downloaded")``
    """

    kind: str
    what: str
    missing: str | None
    """Why it cannot be used, in a sentence; None where it is there."""


def find_reproduction(name: str) -> Reproduction:
    """Return a reproduction by name.

    Raises:
        UserError: there is none; the message has the nearest name.
    """
    found = REPRODUCTIONS.get(name)
    if found is None:
        near = difflib.get_close_matches(name, REPRODUCTIONS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"NAME is one of {', '.join(REPRODUCTIONS)}, not {name!r}{hint}.")
    return found


def thawed_by(reproduction: Reproduction, file: bytes, overrides: Sequence[str]) -> list[str]:
    """List what makes a run another experiment than the frozen one: another file, or changes of more than places."""
    changed = [] if hashlib.sha256(file).hexdigest() == reproduction.digest else ["another file"]
    return [*changed, *(text for text in overrides if PLACES.fullmatch(text.partition("=")[0]) is None)]


def requirements(reproduction: Reproduction, config: Config, gpus: int | None) -> list[Requirement]:
    """Look for everything that a reproduction needs; runs, calls and downloads nothing.

    Args:
        reproduction: whose benchmarks.
        config: its configuration, places changed.
        gpus: of this machine; None where a cluster has them.
    """
    found = [*_models(config), _requirement("images", str(config.data.path), lambda: _training_images(config))]
    for name in reproduction.benchmarks:
        settings = settings_of(config.evaluate.benchmarks, name)
        found.append(_requirement("questions", settings.path, partial(_questions, config, name)))
    endpoints: list[CallsConfig] = [config.label.extractor]
    if config.evaluate.judge is not None:
        endpoints.append(config.evaluate.judge)
    found += [
        Requirement("key", f"{one.api_key_env} for {one.section}", _missing_key(one))
        for one in endpoints
        if one.serve_model is None
    ]
    if gpus is not None and config.ray.logical_gpus is None:
        wanted = max(
            math.ceil(sum(request.count * request.num_gpus for request in stage))
            for stage in stage_requests(config).values()
        )
        missing = None if gpus >= wanted else f"this machine has {gpus}: run it on another one or on a cluster"
        found.append(
            Requirement("GPU", f"{wanted} of {reproduction.gpu_gb} GB", missing)
            if wanted
            else Requirement("GPU", "none", None)
        )
    return found


def measured_rows(reproduction: Reproduction, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Put what was measured beside what was published.

    Args:
        reproduction: whose published results.
        results: ``benchmarks`` of `benchmarks.json`.

    Returns:
        A row for each metric and policy, in percent; JSON-serialisable.
    """
    rows = []
    for result in reproduction.results:
        models = results[result.benchmark]["models"]
        for which in (BEFORE, AFTER):
            measured = models[which]["figures"][result.figure]
            value, interval = measured["value"], measured["interval"]
            rows.append(
                {
                    "benchmark": result.benchmark,
                    "figure": result.figure,
                    "policy": which,
                    "published": result.of(which),
                    "measured": None if value is None else 100 * value,
                    "interval": None if interval is None else [100 * bound for bound in interval],
                }
            )
    return rows


def _requirement(kind: str, what: str, look: Callable[[], object]) -> Requirement:
    try:
        look()
    except UserError as error:
        return Requirement(kind, what, str(error))
    return Requirement(kind, what, None)


def _models(config: Config) -> Iterator[Requirement]:
    label = config.label
    verifiers = [one.model for one in (label.verifier, label.second_verifier) if one is not None]
    untested = config.policy.allow_untested
    for model in dict.fromkeys([config.policy.model, config.rewards.backbone, *verifiers]):
        yield _requirement("weights", model, partial(check_vision_model, model, untested))
    served = label.extractor.serve_model
    if served is not None:
        yield _requirement("weights", served, lambda: check_checkpoint(served, sees_images=False))


def _training_images(config: Config) -> None:
    """Raises UserError where there are too few images."""
    if config.data.source != "folder":
        return
    wanted = config.data.sample_images + config.data.align_images + config.data.evaluate_images
    there = len(find_images(config.data.path or ""))
    if there < wanted:
        raise UserError(f"{config.data.path} holds {there} images, and {wanted} are wanted: set data.path to more.")


def _questions(config: Config, name: str) -> None:
    """Raises UserError where questions or their images are missing, or are among the images of training."""
    settings = settings_of(config.evaluate.benchmarks, name)
    folder = None if settings.images is None and REGISTRY[name].holds_images else ImageFolder(name, settings.images)
    benchmark = load_benchmark(config.evaluate.benchmarks, name, () if folder is None else folder.names)
    asked = {question.image for question in benchmark.questions}
    if folder is not None:
        folder.find_all(asked)
    if config.data.source == "folder" and config.data.path is not None and storage.is_folder(config.data.path):
        shared = _numbers(storage.list_files(config.data.path)) & _numbers(asked)
        if shared:
            raise UserError(
                f"{len(shared)} images of {benchmark.title} are also in {config.data.path}, the first number "
                f"{min(shared)}: set data.path to images that it does not ask about."
            )


def _numbers(names: Any) -> set[str]:
    return {found[1].lstrip("0") for name in names if (found := _NUMBER.search(name)) is not None}


def _missing_key(endpoint: CallsConfig) -> str | None:
    if OPENAI not in (endpoint.base_url or "") or os.environ.get(endpoint.api_key_env):
        return None
    return f"set the environment variable {endpoint.api_key_env}"

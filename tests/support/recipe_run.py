"""A shipped configuration as it is, with tiny models of the same families, few images and one step put in from outside.

Its GPUs are numbers; placement, worker numbers, fractions of GPUs, sync and data types are the file's own. The endpoint
of the facts is a local server.
"""

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fgaif_ray.records import FACT_TYPES
from support.fake_openai import FakeOpenAI, Reply, Request
from support.families import build
from support.paths import ROOT

ENGINES = ("sample.engine", "label.verifier.engine", "align.rollout.engine", "evaluate.engine")
ENGINE = {"max_model_len": 512, "max_num_seqs": 8, "kv_cache_gib": 0.1, "enforce_eager": "true", "threads": 1}
"""What vLLM's CPU build needs."""
SMALL = (
    *("ray.num_cpus=64", "ray.object_store_gib=0.2"),
    *("data.source=shapes", "data.path=null", "data.annotations=null"),
    *("data.sample_images=12", "data.align_images=8", "data.evaluate_images=4"),
    *("sample.max_tokens=32", "evaluate.max_tokens=32"),
    *("label.extractor.price=null", "label.extractor.budget=null"),
    *("label.extractor.requests_per_minute=null", "label.extractor.tokens_per_minute=null"),
    *("rewards.epochs=1", "rewards.batch_size=8", "rewards.threads=1", "serve.port=0", "serve.threads=1"),
    *("align.steps=1", "align.rollout_batch_size=8", "align.threads=1", "align.rollout.max_tokens=32"),
    *("align.ppo.minibatch_size=8", "align.ppo.micro_batch_size=2", "align.reward.length_target=16"),
    *(f"{engine}.{key}={value}" for engine in ENGINES for key, value in ENGINE.items()),
)
STATEMENTS = {
    "existence": "There is a circle.",
    "attribute": "The circle is red.",
    "relation": "The circle is above the square.",
}


STAGES = ("sample", "label", "train_rewards", "serve_rewards", "align", "evaluate", "report")


@dataclass(frozen=True)
class Recipe:
    """A file of `configs/`, and the families of its models."""

    name: str
    policy: str
    verifier: str
    changes: tuple[str, ...] = ()
    """Overrides: where its GPUs are."""

    @property
    def file(self) -> Path:
        return ROOT / "configs" / f"{self.name}.yaml"

    @property
    def models(self) -> dict[str, str]:
        """Family by key of the configuration."""
        return {
            "policy.model": self.policy,
            "label.verifier.model": self.verifier,
            "rewards.backbone": self.policy,
        }


@dataclass(frozen=True)
class Finished:
    """A run that has ended."""

    code: int
    output: str
    folder: Path

    def check(self) -> None:
        """It went through every stage."""
        assert self.code == 0, self.output[-6000:]
        assert [stage for stage in STAGES if f"== {stage}:" not in self.output] == []
        assert (self.folder / "report.html").exists()
        assert "align: 1 steps of PPO" in self.output


def tiny_models(models: Mapping[str, str], folder: Path) -> list[str]:
    """Overrides that put tiny models in.

    Args:
        models: family by key of the configuration.
        folder: where the models are written.
    """
    return [f"{key}={build(family, folder / family)}" for key, family in models.items()]


def run_recipe(
    recipe: Recipe, folder: Path, changes: Sequence[str] = (), job: Sequence[str] = ("pipeline",)
) -> Finished:
    """Call the pipeline, or another job that runs all stages, on a recipe's file.

    Args:
        recipe: what is run.
        folder: of models and run.
        changes: further overrides.
        job: its name and arguments.
    """
    with FakeOpenAI(extract) as server:
        overrides = [f"run.dir={folder / 'run'}", f"label.extractor.base_url={server.url}"]
        overrides += [*SMALL, *tiny_models(recipe.models, folder), *recipe.changes, *changes]
        words = [word for change in overrides for word in ("--set", change)]
        result = subprocess.run(
            [sys.executable, "-m", f"jobs.{job[0]}", *job[1:], "--config", str(recipe.file), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"RAY_TMPDIR": "/tmp", "OPENAI_API_KEY": "none"},
            cwd=ROOT,
            check=False,
        )
    return Finished(result.returncode, result.stdout, folder / "run")


def extract(_number: int, body: Request) -> Reply:
    """Answer for every segment of a response with facts of some types, of every type in some segment."""
    text = body["messages"][-1]["content"]
    if "JSON list:\n" not in text:  # the job asks whether the endpoint keeps to a schema
        return Reply.completion({name: [STATEMENTS[name]] for name in FACT_TYPES})
    segments = json.loads(text.partition("JSON list:\n")[2].partition("\n\n")[0])
    found = []
    for segment in segments:
        chosen = zlib.crc32(segment.encode())
        found.append({name: [STATEMENTS[name]] if chosen >> bit & 1 else [] for bit, name in enumerate(FACT_TYPES)})
    return Reply.completion({"segments": found})

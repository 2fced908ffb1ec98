"""What tests of benchmark runs share: a configuration, answers made elsewhere, and what was found."""

from pathlib import Path
from typing import Any

import safetensors.numpy

from fgaif_ray import storage
from fgaif_ray.config import Config, load_config
from support.benchmark_files import write_pope
from support.fake_openai import FakeOpenAI


def configure(repository: Path, tmp_path: Path, *changes: str, judge: FakeOpenAI | None = None) -> Config:
    judged = [] if judge is None else [f"evaluate.judge={{base_url: '{judge.url}', model: judge}}"]
    return load_config(repository / "configs" / "shapes.yaml", [f"run.dir={tmp_path / 'run'}", *judged, *changes])


def with_pope(repository: Path, tmp_path: Path) -> Config:
    return configure(repository, tmp_path, f"evaluate.benchmarks.pope.path={write_pope(tmp_path / 'pope')}")


def pope_rows(answers: list[str], **more: Any) -> list[dict[str, Any]]:
    ids = [f"{split}/{n}" for split in ("random", "popular", "adversarial") for n in (1, 2)]
    return [{"id": id_, "answer": answer, **more} for id_, answer in zip(ids, answers, strict=True)]


def result(config: Config, name: str) -> dict[str, Any]:
    found: dict[str, Any] = storage.read_json(f"{config.run.dir}/benchmarks.json")["benchmarks"][name]
    return found


def value(models: dict[str, Any], model: str, figure: str) -> float:
    found: float = models[model]["figures"][figure]["value"]
    return found


def publish_adapter(config: Config, rank: int = 16) -> None:
    stage = storage.Stage(config.run.dir, "policy", "adapter-of-the-test")
    stage.begin()
    storage.write_json(f"{stage.partial}/adapter_config.json", {"r": rank})
    storage.write_bytes(f"{stage.partial}/adapter_model.safetensors", safetensors.numpy.save({}))
    stage.publish({})

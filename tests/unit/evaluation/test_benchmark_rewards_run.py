"""HalLoc as a run: real reward models with random weights judge, and what they said is kept."""

from pathlib import Path

import pytest
from support.benchmark_files import write_halloc, write_lines, write_obj_halbench, write_pope
from support.benchmark_runs import configure, publish_adapter, result, value
from support.fake_openai import FakeOpenAI, Reply
from support.reward_helpers import picture, save_reward_models

from actors.evaluation.benchmark_answers import unpack_images
from actors.evaluation.benchmarks import _tasks, run_benchmarks
from actors.evaluation.reward_benchmark import judged_before, read_verdicts, reward_task
from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.rewards.encoding import ScoringItem
from fgaif_ray.rewards.model_files import load_reward_model
from fgaif_ray.vlm.backbone import load_backbone


def with_halloc(repository: Path, tmp_path: Path, *changes: str, kind: str = "separate") -> Config:
    images = tmp_path / "VG_100K"
    images.mkdir(exist_ok=True)
    for n in range(4):
        (images / f"{2300000 + n}.jpg").write_bytes(picture(40 * n, file_format="JPEG"))
    if not (tmp_path / "halloc").exists():
        write_halloc(tmp_path / "halloc")
    config = configure(
        repository,
        tmp_path,
        f"evaluate.benchmarks.halloc={{path: {tmp_path / 'halloc'}, images: {images}}}",
        f"rewards.backbone={repository}/fgaif_ray/shapes/checkpoints/policy",
        "run.fact_types=[existence, attribute, relation]",
        *changes,
    )
    if storage.read_manifest(config.run.dir, "rewards") is None:
        stage = storage.Stage(config.run.dir, "rewards", "of-the-test")
        stage.begin()
        save_reward_models(Path(stage.partial), kind=kind)
        stage.publish({})
    return config


def test_reward_models_are_measured_on_marked_texts(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_halloc(repository, tmp_path)
    run_benchmarks(config, "halloc")
    found = result(config, "halloc")
    assert found["models"]["rewards"]["answers"] == 8
    assert 0 <= value(found["models"], "rewards", "object.auroc") <= 1
    assert "object.average_precision %" in capsys.readouterr().out


def test_verdicts_are_those_of_the_reward_models(repository: Path, tmp_path: Path) -> None:
    from PIL import Image

    config = with_halloc(repository, tmp_path)
    run_benchmarks(config, "halloc")
    task = reward_task(config, "halloc")
    response = task.benchmark.responses[1]
    model = load_reward_model(
        load_backbone(config.rewards.backbone), {"attribute": f"{config.run.dir}/rewards/attribute"}
    )
    image = Image.open(task.images[response.image]).convert("RGB")
    (own,) = model.score("attribute", [ScoringItem([image], response.prompt, response.segments)])
    assert read_verdicts(task)[response.id]["attribute"] == pytest.approx(own, abs=1e-5)


def test_an_interrupted_run_goes_on(repository: Path, tmp_path: Path) -> None:
    config = with_halloc(repository, tmp_path, "evaluate.batch_size=3")
    run_benchmarks(config, "halloc")
    whole = result(config, "halloc")
    task = reward_task(config, "halloc")
    parts = storage.list_parts(task.stage.folder)
    task.stage.begin()
    kept = Path(parts[0])
    Path(task.stage.partial, kept.name).write_bytes(kept.read_bytes())
    storage.remove_folder(task.stage.folder)
    done = judged_before(task)
    assert len(done) in (1, 3)
    run_benchmarks(config, "halloc")
    assert result(config, "halloc")["models"] == whole["models"]


def test_a_dry_run_tells_what_is_to_be_judged(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_benchmarks(with_halloc(repository, tmp_path), "halloc", dry_run=True)
    assert "HalLoc: 4 of 4 responses are to be judged" in capsys.readouterr().out


def test_a_response_whose_image_cannot_be_read_is_counted(repository: Path, tmp_path: Path) -> None:
    config = with_halloc(repository, tmp_path)
    (tmp_path / "VG_100K" / "2300001.jpg").write_bytes(b"no picture")
    run_benchmarks(config, "halloc")
    assert result(config, "halloc")["models"]["rewards"]["counts"]["unjudged"] == 1


def test_answers_of_a_policy_are_refused(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="halloc tests reward models: it takes no --answers"):
        run_benchmarks(with_halloc(repository, tmp_path), "halloc", ["mine.jsonl"])


def test_a_run_without_reward_models_says_what_to_do(repository: Path, tmp_path: Path) -> None:
    config = with_halloc(repository, tmp_path)
    storage.remove_folder(f"{config.run.dir}/rewards")
    with pytest.raises(UserError, match="train_rewards"):
        run_benchmarks(config, "halloc")


def test_reward_models_of_whole_responses_are_refused(repository: Path, tmp_path: Path) -> None:
    config = with_halloc(repository, tmp_path, kind="coarse")
    with pytest.raises(UserError, match=r"rewards\.kind other than coarse"):
        run_benchmarks(config, "halloc")


def test_object_halbench_is_paid_by_the_judge_once(repository: Path, tmp_path: Path) -> None:
    with FakeOpenAI(lambda number, body: Reply.completion('["dog", "cat"]')) as judge:
        path = write_obj_halbench(tmp_path / "objects")
        config = configure(repository, tmp_path, f"evaluate.benchmarks.obj_halbench.path={path}", judge=judge)
        write_lines(tmp_path / "m.jsonl", [{"id": n, "answer": "It is a dog and a cat."} for n in range(2)])
        run_benchmarks(config, "obj-halbench", [str(tmp_path / "m.jsonl")])
        run_benchmarks(config, "obj-halbench", [str(tmp_path / "m.jsonl")])
    found = result(config, "obj_halbench")
    assert len(judge.requests) == 2
    assert (value(found["models"], "m", "response"), value(found["models"], "m", "mention")) == (1.0, 0.75)
    assert found["judge"]["model"] == "judge"


def test_images_of_the_official_file_are_written_where_they_are_asked_about(repository: Path, tmp_path: Path) -> None:
    path = write_obj_halbench(tmp_path / "objects", picture())
    config = configure(
        repository, tmp_path, f"evaluate.benchmarks.obj_halbench={{path: {path}, extraction: words, limit: 1}}"
    )
    publish_adapter(config)
    (task,) = _tasks(config, ["obj_halbench"])
    unpack_images(task)
    written = sorted(file.name for file in (tmp_path / "run" / "benchmark_images" / "obj_halbench").iterdir())
    assert written == ["000000000001.jpg"]
    assert Path(task.image_of(task.benchmark.questions[0])).read_bytes() == picture()


def test_a_benchmark_without_images_of_its_own_still_needs_a_folder(repository: Path, tmp_path: Path) -> None:
    config = configure(repository, tmp_path, f"evaluate.benchmarks.pope.path={write_pope(tmp_path / 'pope')}")
    publish_adapter(config)
    with pytest.raises(UserError, match=r"Set evaluate\.benchmarks\.pope\.images"):
        run_benchmarks(config, "pope")

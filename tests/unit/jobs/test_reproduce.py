"""Reproductions: the frozen file, what is missing, what thaws it, and measured beside published."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from support.benchmark_files import write_lines, write_obj_halbench
from support.benchmark_runs import configure
from support.fake_openai import FakeOpenAI, Reply
from support.reward_helpers import CHECKPOINT, picture

from fgaif_ray.config import Config, load_config
from fgaif_ray.errors import UserError
from fgaif_ray.experiments.reproductions import (
    REPRODUCTIONS,
    find_reproduction,
    requirements,
    thawed_by,
)
from jobs.cli import main
from jobs.reproduce import config_file, measure

SENTINEL = REPRODUCTIONS["sentinel"]


@pytest.fixture
def stand_ins(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Changes of the frozen configuration that this machine has everything for."""
    monkeypatch.setenv("OPENAI_API_KEY", "of-the-test")
    images = tmp_path / "train2014"
    images.mkdir()
    for number in range(3, 6):
        (images / f"COCO_train2014_{number:012d}.jpg").write_bytes(picture(number, file_format="JPEG"))
    models = ("policy.model", "label.verifier.model", "rewards.backbone")
    engines = ("sample", "label.verifier", "evaluate")
    return [
        f"run.dir={tmp_path / 'run'}",
        f"data.path={images}",
        "data.sample_images=1",
        "data.evaluate_images=1",
        f"evaluate.benchmarks.obj_halbench.path={write_obj_halbench(tmp_path / 'obj_halbench')}",
        *(f"{model}={CHECKPOINT}" for model in models),
        *(f"{engine}.engine.num_gpus=0" for engine in engines),
        "rewards.gpus_per_worker=0",
        "align.gpus_per_worker=0",
    ]


def frozen(*changes: str) -> Config:
    return load_config(SENTINEL.file, changes)


def missing(config: Config, gpus: int | None = 0) -> dict[str, str]:
    return {one.kind: one.missing for one in requirements(SENTINEL, config, gpus) if one.missing is not None}


@pytest.mark.parametrize("name", REPRODUCTIONS)
def test_a_frozen_file_is_the_one_whose_digest_is_known(name: str) -> None:
    """A change of the file is another experiment: say so in docs/results.md, and then write its digest."""
    reproduction = REPRODUCTIONS[name]
    assert hashlib.sha256(Path(reproduction.file).read_bytes()).hexdigest() == reproduction.digest


@pytest.mark.parametrize("name", REPRODUCTIONS)
def test_a_frozen_file_asks_the_benchmarks_of_its_results(name: str) -> None:
    config = load_config(REPRODUCTIONS[name].file)
    assert all(getattr(config.evaluate.benchmarks, one) is not None for one in REPRODUCTIONS[name].benchmarks)


def test_an_unknown_name_brings_the_nearest() -> None:
    with pytest.raises(UserError, match=r"did you mean sentinel\?"):
        find_reproduction("sentinal")


@pytest.mark.parametrize(
    ("change", "thaws"),
    [
        ("run.dir=elsewhere", False),
        ("data.path=/data/coco", False),
        ("evaluate.benchmarks.obj_halbench.images=/data/coco", False),
        ("evaluate.judge.budget=1", False),
        ("run.seed=1", True),
        ("policy.model=other", True),
        ("evaluate.benchmarks.obj_halbench.limit=3", True),
        ("evaluate.judge.model=other", True),
    ],
)
def test_only_places_leave_it_frozen(change: str, thaws: bool) -> None:
    file = Path(SENTINEL.file).read_bytes()
    assert thawed_by(SENTINEL, file, [change]) == ([change] if thaws else [])


def test_another_file_is_another_experiment() -> None:
    assert thawed_by(SENTINEL, b"run: {}", []) == ["another file"]


def test_a_dry_run_says_what_is_missing_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("reproduce", ["sentinel", "--dry-run", "--set", f"run.dir={tmp_path / 'run'}"]) == 0
    said = capsys.readouterr().out
    assert "hf download Qwen/Qwen2.5-VL-7B-Instruct" in said
    assert "data/obj_halbench holds no" in said
    assert "benchmarks/obj_halbench/  to do" in said
    assert "Nothing was run" in said
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_that_a_change_thaws_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main("reproduce", ["sentinel", "--dry-run", "--set", f"run.dir={tmp_path}", "--set", "align.steps=3"])
    assert "Not the frozen configuration (align.steps=3)" in capsys.readouterr().out


def test_a_file_of_ones_own_is_read(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(Path(SENTINEL.file).read_text().replace("runs/reproduce-sentinel", str(tmp_path / "own")))
    main("reproduce", ["sentinel", "--dry-run", "--config", str(own)])
    said = capsys.readouterr().out
    assert f"in {tmp_path / 'own'}" in said
    assert "another file" in said


def test_what_is_missing_is_a_sentence_and_nothing_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("reproduce", ["sentinel", "--set", f"run.dir={tmp_path / 'run'}"]) == 2
    assert "needs of sentinel are missing" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_nothing_is_missing_where_all_is_there(stand_ins: list[str]) -> None:
    assert missing(frozen(*stand_ins)) == {}


def test_gpus_are_counted_on_this_machine_alone(stand_ins: list[str]) -> None:
    config = frozen(*stand_ins, "sample.engine.num_gpus=1")
    assert [set(missing(config, gpus)) for gpus in (0, 1, None)] == [{"GPU"}, set(), set()]


def test_a_key_is_wanted_where_openai_is_asked(stand_ins: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    own = ("label.extractor.base_url=http://127.0.0.1:1/v1", "evaluate.judge.base_url=http://127.0.0.1:1/v1")
    assert [set(missing(frozen(*stand_ins, *changes))) for changes in ((), own)] == [{"key"}, set()]


def test_too_few_training_images_are_told(stand_ins: list[str]) -> None:
    assert "holds 3 images, and 7 are wanted" in missing(frozen(*stand_ins, "data.sample_images=5"))["images"]


def test_training_images_that_are_asked_about_are_refused(stand_ins: list[str], tmp_path: Path) -> None:
    (tmp_path / "train2014" / f"{2:012d}.jpg").write_bytes(picture())
    assert "1 images of Object HalBench are also in" in missing(frozen(*stand_ins))["questions"]


def test_the_file_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_file(SENTINEL.file) == repository / SENTINEL.file
    with pytest.raises(UserError, match=r"give the file with --config"):
        config_file("configs/reproduce/none.yaml")


def test_measured_stands_beside_published(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The benchmark of the frozen configuration, on answers that two policies gave."""

    def listed(number: int, body: dict[str, Any]) -> Reply:
        wrong = "cat" in body["messages"][0]["content"]
        return Reply.completion(json.dumps(["train", "cat"] if wrong else ["train"]))

    with FakeOpenAI(listed) as judge:
        path = write_obj_halbench(tmp_path / "obj_halbench")
        config = configure(repository, tmp_path, f"evaluate.benchmarks.obj_halbench.path={path}", judge=judge)
        rows = [
            {"model": which, "id": id_, "answer": f"A train and a {animal} are there."}
            for which, animals in (("before", ["cat", "cat"]), ("after", ["dog", "dog"]))
            for id_, animal in enumerate(animals)
        ]
        write_lines(tmp_path / "answers.jsonl", rows)
        measure("sentinel", config, ["run.seed=1"], [str(tmp_path / "answers.jsonl")])
    found = json.loads((tmp_path / "run" / "reproduction.json").read_text())
    assert (found["frozen"], found["changed"]) == (False, ["run.seed=1"])
    # Image 1 has a dog and a table, image 2 a train: `train` is wrong in one answer of two, `cat` in both.
    assert [(row["figure"], row["policy"], row["published"], row["measured"]) for row in found["rows"]] == [
        ("response", "before", 15.0, 100.0),
        ("response", "after", 4.7, 50.0),
        ("mention", "before", 9.2, 75.0),
        ("mention", "after", 2.8, 50.0),
    ]
    assert "published" in capsys.readouterr().out

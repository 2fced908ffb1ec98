"""Benchmarks as a job: answers made elsewhere, a judge behind a real local server, the command that serves a policy."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.benchmark_files import write_amber, write_chair, write_lines, write_llava_bench, write_mmhal, write_pope
from support.benchmark_runs import configure, pope_rows, publish_adapter, result, value, with_pope
from support.fake_openai import FakeOpenAI, Reply

from actors.engine.serve_command import serving_command
from actors.evaluation.benchmarks import run_benchmarks
from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.evaluation.benchmarks.registry import parse_names
from jobs.cli import main


@pytest.fixture
def judge() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(lambda number, body: Reply.completion("Rating: 4")) as server:
        yield server


def test_answers_made_elsewhere_are_scored_and_compared(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_pope(repository, tmp_path)
    write_lines(tmp_path / "base.jsonl", pope_rows(["Yes"] * 6))
    write_lines(tmp_path / "better.jsonl", pope_rows(["Yes", "No"] * 3))
    run_benchmarks(config, "pope", [str(tmp_path / "base.jsonl"), str(tmp_path / "better.jsonl")])
    found = result(config, "pope")
    assert (value(found["models"], "base", "accuracy"), value(found["models"], "better", "accuracy")) == (0.5, 1.0)
    (comparison,) = found["comparisons"]
    assert (comparison["first"], comparison["second"], comparison["answers"]) == ("base", "better", 6)
    assert comparison["figures"]["accuracy"]["value"] == 0.5
    assert "better - base" in capsys.readouterr().out


def test_answers_are_found_by_image_and_question(repository: Path, tmp_path: Path) -> None:
    config = with_pope(repository, tmp_path)
    texts = {"a.png": ["hat"], "b.png": ["cup", "dog", "fork"]}
    rows = [
        {
            "benchmark": "pope",
            "model": "m",
            "image": image,
            "question": f"Is there a {name} in the image?",
            "answer": "No",
        }
        for image, names in texts.items()
        for name in names
    ]
    write_lines(tmp_path / "m.jsonl", rows)
    run_benchmarks(config, "pope", [str(tmp_path / "m.jsonl")])
    assert result(config, "pope")["models"]["m"]["answers"] == 6


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (pope_rows(["Yes"] * 6)[:5], "has not answered 1 of 6 questions of POPE, the first: adversarial/2"),
        (pope_rows(["Yes"] * 6, question="Is there a car?"), "question random/1 of POPE is 'Is there a hat"),
        ([{"id": "random/9", "answer": "Yes"}], "line 1: POPE has no such question"),
        ([{"id": "random/1", "answer": 1}], "line 1: an answer needs its text under 'answer'"),
        ([*pope_rows(["Yes"] * 6), {"id": "random/1", "answer": "No"}], "another row answers question random/1"),
        ([{"image": "b.png", "answer": "Yes"}], "POPE asks 3 questions about b.png: give 'question'"),
        ([{"benchmark": "amber", "id": "1", "answer": "Yes"}], "no answers to POPE"),
    ],
)
def test_answers_that_do_not_fit_are_one_sentence(
    repository: Path, tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    write_lines(tmp_path / "m.jsonl", rows)
    with pytest.raises(UserError, match=message):
        run_benchmarks(with_pope(repository, tmp_path), "pope", [str(tmp_path / "m.jsonl")])


def test_chair_takes_its_images_from_the_answers(repository: Path, tmp_path: Path) -> None:
    config = configure(repository, tmp_path, f"evaluate.benchmarks.chair.path={write_chair(tmp_path / 'chair')}")
    write_lines(tmp_path / "m.jsonl", [{"image": "COCO_val2014_1.jpg", "answer": "A dog and a cat."}])
    run_benchmarks(config, "chair", [str(tmp_path / "m.jsonl")])
    found = result(config, "chair")
    assert value(found["models"], "m", "chair_i") == 0.5
    assert (found["settings"]["images"], found["settings"]["prompt"]) == (1, "Describe this image in detail.")


def test_results_of_other_benchmarks_stay(repository: Path, tmp_path: Path) -> None:
    config = configure(
        repository,
        tmp_path,
        f"evaluate.benchmarks.pope.path={write_pope(tmp_path / 'pope')}",
        f"evaluate.benchmarks.amber.path={write_amber(tmp_path / 'amber')}",
    )
    write_lines(tmp_path / "p.jsonl", pope_rows(["Yes"] * 6))
    write_lines(tmp_path / "a.jsonl", [{"id": n, "answer": "No" if n > 1 else "A lake."} for n in range(1, 8)])
    run_benchmarks(config, "pope", [str(tmp_path / "p.jsonl")])
    run_benchmarks(config, "amber", [str(tmp_path / "a.jsonl")])
    assert set(storage.read_json(f"{config.run.dir}/benchmarks.json")["benchmarks"]) == {"pope", "amber"}


def with_mmhal(repository: Path, tmp_path: Path, judge: FakeOpenAI, *changes: str) -> tuple[Config, list[str]]:
    config = configure(
        repository,
        tmp_path,
        f"evaluate.benchmarks.mmhal.path={write_mmhal(tmp_path / 'mmhal')}",
        *changes,
        judge=judge,
    )
    files = []
    for model in ("base", "better"):
        files.append(str(tmp_path / f"{model}.jsonl"))
        rows = [{"id": n, "answer": f"{model} says {n}." if n else "Both say this."} for n in range(16)]
        write_lines(tmp_path / f"{model}.jsonl", rows)
    return config, files


def test_both_models_are_judged_in_one_run_and_equal_answers_once(
    repository: Path, tmp_path: Path, judge: FakeOpenAI
) -> None:
    judge.reply = lambda number, body: Reply.completion(
        "Rating: 6" if "better says" in body["messages"][0]["content"] else "Rating: 2"
    )
    config, files = with_mmhal(repository, tmp_path, judge)
    run_benchmarks(config, "mmhal", files)
    found = result(config, "mmhal")
    assert value(found["models"], "base", "score") == 2.0
    assert value(found["models"], "better", "score") == (15 * 6 + 2) / 16
    assert found["judge"]["model"] == "judge"
    assert len(judge.requests) == 31
    assert judge.requests[0]["temperature"] == 0


def test_a_second_run_pays_nothing(repository: Path, tmp_path: Path, judge: FakeOpenAI) -> None:
    config, files = with_mmhal(repository, tmp_path, judge)
    run_benchmarks(config, "mmhal", files)
    run_benchmarks(config, "mmhal", files)
    assert len(judge.requests) == 31


def test_reviews_that_cannot_be_read_are_counted_apart(
    repository: Path, tmp_path: Path, judge: FakeOpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    judge.reply = lambda number, body: Reply.completion(
        "Hm." if "base says 3." in str(body["messages"]) else "Rating: 5"
    )
    config, files = with_mmhal(repository, tmp_path, judge)
    run_benchmarks(config, "mmhal", files)
    found = result(config, "mmhal")
    assert found["models"]["base"]["counts"]["unrated"] == 1
    assert value(found["models"], "base", "score") == 5.0
    assert found["comparisons"][0]["answers"] == 15
    assert "unrated" in capsys.readouterr().out


def test_a_judge_that_refuses_single_answers_does_not_stop_the_run(
    repository: Path, tmp_path: Path, judge: FakeOpenAI
) -> None:
    judge.reply = lambda number, body: (
        Reply.error(400, "content_filter") if "base says 3." in str(body["messages"]) else Reply.completion("Rating: 5")
    )
    config, files = with_mmhal(repository, tmp_path, judge)
    run_benchmarks(config, "mmhal", files)
    assert result(config, "mmhal")["models"]["base"]["counts"]["unrated"] == 1


def test_llava_bench_asks_both_orders(repository: Path, tmp_path: Path, judge: FakeOpenAI) -> None:
    judge.reply = lambda number, body: Reply.completion("9 6\nThe first one is first.")
    config = configure(
        repository, tmp_path, f"evaluate.benchmarks.llava_bench.path={write_llava_bench(tmp_path / 'l')}", judge=judge
    )
    write_lines(tmp_path / "m.jsonl", [{"id": n, "answer": f"Mine {n}."} for n in range(3)])
    run_benchmarks(config, "llava-bench", [str(tmp_path / "m.jsonl")])
    assert len(judge.requests) == 6
    assert value(result(config, "llava_bench")["models"], "m", "all") == 100.0


def test_a_judge_that_cannot_be_used_is_one_sentence(repository: Path, tmp_path: Path, judge: FakeOpenAI) -> None:
    judge.models = Reply.error(401)
    config, files = with_mmhal(repository, tmp_path, judge)
    with pytest.raises(UserError, match=r"judging endpoint .* OPENAI_API_KEY"):
        run_benchmarks(config, "mmhal", files)


def test_a_judged_benchmark_without_a_judge_names_the_setting(repository: Path, tmp_path: Path) -> None:
    config = configure(repository, tmp_path, f"evaluate.benchmarks.mmhal.path={write_mmhal(tmp_path / 'mmhal')}")
    write_lines(tmp_path / "m.jsonl", [{"id": n, "answer": "A cat."} for n in range(16)])
    with pytest.raises(UserError, match=r"set evaluate\.judge\.base_url"):
        run_benchmarks(config, "mmhal", [str(tmp_path / "m.jsonl")])


def test_a_dry_run_tells_calls_and_money_and_calls_nothing(
    repository: Path, tmp_path: Path, judge: FakeOpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    price = "evaluate.judge.price={input_per_million: 1, output_per_million: 1}"
    config, files = with_mmhal(repository, tmp_path, judge)
    config = configure(repository, tmp_path, f"evaluate.benchmarks.mmhal.path={tmp_path / 'mmhal'}", price, judge=judge)
    run_benchmarks(config, "mmhal", files, dry_run=True)
    said = capsys.readouterr().out
    assert "31 calls of the judge, 1 saved" in said
    assert "USD" in said
    assert judge.requests == []
    assert not (tmp_path / "run").exists()


def test_a_budget_holds_the_judge(repository: Path, tmp_path: Path, judge: FakeOpenAI) -> None:
    price = "evaluate.judge.price={input_per_million: 1000000, output_per_million: 1000000}"
    with_mmhal(repository, tmp_path, judge)
    config = configure(
        repository,
        tmp_path,
        f"evaluate.benchmarks.mmhal.path={tmp_path / 'mmhal'}",
        price,
        "evaluate.judge.budget=100",
        judge=judge,
    )
    with pytest.raises(UserError, match=r"evaluate\.judge\.budget"):
        run_benchmarks(config, "mmhal", [str(tmp_path / "base.jsonl")])


@pytest.mark.parametrize("names", ["", "pope,other"])
def test_an_unknown_benchmark_is_one_sentence(names: str) -> None:
    with pytest.raises(UserError, match="llava-bench"):
        parse_names(names)


def test_a_benchmark_that_is_not_configured_names_the_key(repository: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(UserError, match=r"Set evaluate\.benchmarks\.amber\.path"):
        run_benchmarks(configure(repository, tmp_path), "amber", [str(empty)])


def test_several_files_of_answers_are_compared_by_one_command(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("base", "better"):
        write_lines(tmp_path / f"{name}.jsonl", pope_rows(["Yes"] * 6))
    files = [word for name in ("base", "better") for word in ("--answers", str(tmp_path / f"{name}.jsonl"))]
    settings = [f"run.dir={tmp_path}", f"evaluate.benchmarks.pope.path={write_pope(tmp_path / 'pope')}"]
    changes = [word for setting in settings for word in ("--set", setting)]
    file = str(repository / "configs" / "shapes.yaml")
    assert main("benchmark", ["pope", "--config", file, *changes, *files]) == 0
    assert "better - base" in capsys.readouterr().out


def test_the_serve_command_names_model_and_adapter(repository: Path, tmp_path: Path) -> None:
    config = configure(repository, tmp_path)
    publish_adapter(config, rank=24)
    words = serving_command(config)
    assert words[:4] == ["vllm", "serve", config.policy.model, "--enable-lora"]
    options = dict(zip(words[4::2], words[5::2]))
    assert options["--lora-modules"] == f"aligned={tmp_path}/run/policy"
    assert options["--max-lora-rank"] == "32"

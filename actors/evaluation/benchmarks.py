"""Public benchmarks as a stage, by the names of ``fgaif_ray.evaluation.benchmarks.registry``.

Answers the official questions with the policy before and after alignment, or takes answers that were made elsewhere;
scores them by the official rules, both models in one run, and compares them question by question. Benchmarks of reward
models have the run's own judge their responses. Writes `benchmarks/<name>/` (answers, verdicts) and
`benchmarks.json` into the run's folder.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from actors.evaluation import judge
from actors.evaluation.benchmark_answers import Task, answer, collect, done, questions_of, read_answers, unpacked_images
from actors.evaluation.reward_benchmark import measure_rewards, reward_task, show_pending
from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.evaluation import POLICIES
from fgaif_ray.evaluation.benchmarks.answers import (
    AnswerLine,
    Answers,
    images_of,
    join_answers,
    read_answer_lines,
)
from fgaif_ray.evaluation.benchmarks.base import Benchmark, Reviews
from fgaif_ray.evaluation.benchmarks.registry import (
    NAMES,
    REGISTRY,
    load_benchmark,
    parse_names,
    settings_of,
    shown_name,
)
from fgaif_ray.progress import say
from fgaif_ray.storage import stages

RESULTS_FILE: Final = "benchmarks.json"


def run_benchmarks(config: Config, names: str, answers: Sequence[str] | None = None, dry_run: bool = False) -> None:
    """Score both policies, or answers made elsewhere, on some benchmarks.

    Args:
        config: the configuration.
        names: of the benchmarks, with commas between them.
        answers: files of answers; no engine is started then.
        dry_run: only tell what would be asked.

    Raises:
        UserError: files, images, answers, the policy or the judge cannot be used. What was done so far is kept.
    """
    started = time.monotonic()
    chosen = parse_names(names)
    rewarded = [name for name in chosen if REGISTRY[name].about == "rewards"]
    of_policy = [name for name in chosen if name not in rewarded]
    if answers and rewarded:
        raise UserError(f"{shown_name(rewarded[0])} tests reward models: it takes no --answers.")
    judged = [reward_task(config, name) for name in rewarded]
    tasks: list[Task] = []
    if answers:
        benchmarks, given = _given(config, of_policy, read_answer_lines(answers))
    else:
        tasks = _tasks(config, of_policy) if of_policy else []
        benchmarks, given = [task.benchmark for task in tasks], {}
    judge.check(config, benchmarks)
    if dry_run:
        for one in judged:
            show_pending(one)
        _show_cost(config, benchmarks, tasks, given)
        return
    cut_off: dict[tuple[str, str], int] = {}
    if tasks:
        answer(config, tasks)
        for task in tasks:
            given[task.benchmark.name] = collect(task, cut_off)
    reviews = judge.collect(config, benchmarks, given)
    results = {one.benchmark.name: measure_rewards(config, one) for one in judged}
    for benchmark in benchmarks:
        name = benchmark.name
        results[name] = _score(config, benchmark, given[name], reviews, cut_off) | {
            "source": list(answers) if answers else "run",
            "settings": benchmark.settings
            | settings_of(config.evaluate.benchmarks, name).model_dump(exclude={"path", "images"}),
            "judge": judge.description(config) if benchmark.judged else None,
        }
    _publish(config, results)
    say(f"benchmark: figures in {storage.join(config.run.dir, RESULTS_FILE)}, {time.monotonic() - started:.0f} s.")


def _given(config: Config, names: list[str], lines: Sequence[AnswerLine]) -> tuple[list[Benchmark], Answers]:
    """The benchmarks and the answers that files have for them."""
    benchmarks = []
    found: Answers = {}
    for name in names:
        settings = settings_of(config.evaluate.benchmarks, name)
        alone = len(names) == 1
        images = images_of(lines, name, alone=alone)
        benchmark = load_benchmark(config.evaluate.benchmarks, name, images, draw=False)
        benchmarks.append(benchmark)
        found[name] = join_answers(lines, benchmark, alone=alone, limited=settings.limit is not None)
    return benchmarks, found


def _tasks(config: Config, names: list[str]) -> list[Task]:
    from fgaif_ray.evaluation.benchmarks.images import ImageFolder

    stages.require(config.run.dir, stages.POLICY)
    tasks = []
    for name in names:
        settings = settings_of(config.evaluate.benchmarks, name)
        folder = None if settings.images is None and REGISTRY[name].holds_images else ImageFolder(name, settings.images)
        benchmark = load_benchmark(
            config.evaluate.benchmarks, name, folder.names if folder is not None else (), seed=config.run.seed
        )
        if folder is not None:
            images = folder.find_all(question.image for question in benchmark.questions)
        else:
            images = unpacked_images(config, benchmark)
        questions = [[question.id, question.prompt, question.max_tokens] for question in benchmark.questions]
        stage = stages.benchmark(config, name, questions, settings.suffix, images)
        tasks.append(Task(benchmark, settings, stage, images))
    return tasks


def _score(
    config: Config,
    benchmark: Benchmark,
    answers: Mapping[str, Mapping[str, str]],
    reviews: Mapping[tuple[str, str], Reviews],
    cut_off: Mapping[tuple[str, str], int],
) -> dict[str, Any]:
    """Figures of every model, and of every later model against the first; prints them."""
    from fgaif_ray.evaluation.benchmarks.metrics import compare, measure, table

    scores = {
        model: benchmark.score(of_model, reviews.get((benchmark.name, model), {}))
        for model, of_model in answers.items()
    }
    models = {model: measure(score, config.run.seed) for model, score in scores.items()}
    for model, measured in models.items():
        if (benchmark.name, model) in cut_off:
            measured["counts"]["cut_off"] = cut_off[benchmark.name, model]
    first, *others = scores
    comparisons = [
        {"first": first, "second": other} | compare(scores[first], scores[other], config.run.seed) for other in others
    ]
    for line in table(benchmark.title, scores[first].scales, models, comparisons):
        say(line)
    return {"title": benchmark.title, "models": models, "comparisons": comparisons}


@storage.writes_run("benchmark")
def _publish(config: Config, results: Mapping[str, Any]) -> None:
    """Write ``benchmarks.json``: the latest metrics of every benchmark."""
    from fgaif_ray.statistics.intervals import CONFIDENCE

    uri = storage.join(config.run.dir, RESULTS_FILE)
    known = {**(storage.read_json(uri)["benchmarks"] if storage.exists(uri) else {}), **results}
    ordered = {name: known[name] for name in NAMES if name in known}
    storage.write_json(uri, {"confidence": CONFIDENCE, "benchmarks": ordered})


def _show_cost(config: Config, benchmarks: Sequence[Benchmark], tasks: Sequence[Task], given: Answers) -> None:
    """Print how many answers and reviews are to be made, and what the judge would cost."""
    for task in tasks:
        wanted = {question.id for which in POLICIES for question in questions_of(config, task, which)}
        answered = done(task)
        say(f"benchmark: {task.benchmark.title}: {len(wanted - answered)} of {len(wanted)} answers are to be made.")
        if task.benchmark.judged:
            known = read_answers(task, task.stage.folder) if task.stage.is_complete() else {}
            given[task.benchmark.name] = {
                which: {
                    # An answer that is not there is taken to be as long as it may become.
                    question.id: known.get(which, {}).get(question.id, f"{which} " * question.max_tokens)
                    for question in task.benchmark.questions
                }
                for which in POLICIES
            }
    judge.show_cost(config, benchmarks, given)

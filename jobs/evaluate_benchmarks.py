"""The mode of `jobs.evaluate` that runs public benchmarks: POPE, CHAIR, AMBER, MMHal-Bench, LLaVA-Bench.

Answers the official questions with the policy before and after alignment, or takes answers that were made elsewhere;
scores them by the official rules, both models in one run, and compares them question by question. Writes
`benchmarks/<name>/` (answers) and `benchmarks.json` into the run's folder.
"""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fgaif_ray import storage
from fgaif_ray.config import BenchmarkConfig, Config
from fgaif_ray.evaluation import AFTER, POLICIES
from fgaif_ray.evaluation.benchmarks import NAMES, load_benchmark, parse_names, settings_of
from fgaif_ray.evaluation.benchmarks.answers import (
    Answers,
    answer_lines,
    images_of,
    join_answers,
    read_rows,
)
from fgaif_ray.evaluation.benchmarks.base import Benchmark, BenchmarkQuestion, Reviews
from fgaif_ray.evaluation.rows import QUESTIONS_SCHEMA, REJECTED_FOLDER
from fgaif_ray.progress import Progress, say
from fgaif_ray.records import fingerprint
from fgaif_ray.storage import stages
from fgaif_ray.vlm.front_end import load_front_end
from jobs.cli import Mode, find_user_error

FOLDER: Final = "benchmarks"
ANSWERS_FILE: Final = "answers.jsonl"
RESULTS_FILE: Final = "benchmarks.json"


@dataclass(frozen=True, slots=True)
class Task:
    """A benchmark that the policies answer."""

    benchmark: Benchmark
    config: BenchmarkConfig
    stage: storage.Stage
    images: dict[str, str]
    """Path or URI by official name."""

    def row_id(self, which: str, question: BenchmarkQuestion) -> str:
        """Identity of the answer; questions that several splits share have one."""
        image, prompt = self.images[question.image], question.prompt + self.config.suffix
        return fingerprint(which, self.benchmark.name, image, prompt, question.max_tokens)


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
    from jobs import evaluate_judge

    started = time.monotonic()
    chosen = parse_names(names)
    tasks: list[Task] = []
    if answers:
        benchmarks, given = _given(config, chosen, read_rows(answers))
    else:
        tasks = _tasks(config, chosen)
        benchmarks, given = [task.benchmark for task in tasks], {}
    evaluate_judge.check(config, benchmarks)
    if dry_run:
        _show_cost(config, benchmarks, tasks, given)
        return
    cut_off: dict[tuple[str, str], int] = {}
    if tasks:
        _answer(config, tasks)
        for task in tasks:
            given[task.benchmark.name] = _collect(task, cut_off)
    reviews = evaluate_judge.collect(config, benchmarks, given)
    results = {}
    for benchmark in benchmarks:
        name = benchmark.name
        results[name] = _score(config, benchmark, given[name], reviews, cut_off) | {
            "source": list(answers) if answers else "run",
            "settings": benchmark.settings
            | settings_of(config.evaluate.benchmarks, name).model_dump(exclude={"path", "images"}),
            "judge": evaluate_judge.description(config) if benchmark.judged else None,
        }
    _publish(config, results)
    say(f"evaluate: figures in {storage.join(config.run.dir, RESULTS_FILE)}, {time.monotonic() - started:.0f} s.")


def _given(config: Config, names: list[str], rows: list[dict[str, Any]]) -> tuple[list[Benchmark], Answers]:
    """The benchmarks and the answers that files have for them."""
    benchmarks = []
    found: Answers = {}
    for name in names:
        settings = settings_of(config.evaluate.benchmarks, name)
        alone = len(names) == 1
        images = images_of(rows, name, alone=alone)
        benchmark = load_benchmark(config.evaluate.benchmarks, name, images, draw=False)
        benchmarks.append(benchmark)
        found[name] = join_answers(rows, benchmark, alone=alone, limited=settings.limit is not None)
    return benchmarks, found


def _tasks(config: Config, names: list[str]) -> list[Task]:
    from fgaif_ray.evaluation.benchmarks.images import ImageFolder

    stages.require(config.run.dir, stages.POLICY)
    tasks = []
    for name in names:
        settings = settings_of(config.evaluate.benchmarks, name)
        folder = ImageFolder(name, settings.images)
        benchmark = load_benchmark(config.evaluate.benchmarks, name, folder.names, seed=config.run.seed)
        images = folder.find_all(question.image for question in benchmark.questions)
        questions = [[question.id, question.prompt, question.max_tokens] for question in benchmark.questions]
        stage = stages.benchmark(config, name, questions, settings.suffix, images)
        tasks.append(Task(benchmark, settings, stage, images))
    return tasks


def _done(task: Task) -> set[str]:
    """Questions that an earlier attempt has answered or rejected."""
    if task.stage.is_complete():
        folder = task.stage.folder
    elif task.stage.is_begun():
        folder = task.stage.partial
    else:
        return set()
    folders = (folder, storage.join(folder, REJECTED_FOLDER))
    return {row["id"] for each in folders for row in storage.read_rows(each, ["id"])}


def _questions(config: Config, task: Task, which: str) -> list[dict[str, Any]]:
    """Rows of ``QUESTIONS_SCHEMA``, each once."""
    rows = {}
    for question in task.benchmark.questions:
        id_ = task.row_id(which, question)
        rows[id_] = {
            "id": id_,
            "which": which,
            "task": task.benchmark.name,
            "image": task.images[question.image],
            "prompt": question.prompt + task.config.suffix,
            "temperature": 0.0,
            "max_tokens": question.max_tokens,
            "seed": config.run.seed,
        }
    return list(rows.values())


@storage.writes_run("benchmark")
def _answer(config: Config, tasks: list[Task]) -> None:
    """Answer what is not answered yet with one engine, and publish each benchmark's answers."""
    from fgaif_ray.vlm.checkpoint import check_adapter

    pending: dict[tuple[str, str], list[dict[str, Any]]] = {}
    total = 0
    for task in tasks:
        if task.stage.is_complete():
            continue
        task.stage.begin(overwrite=config.run.overwrite)
        done = _done(task)
        for which in POLICIES:
            rows = _questions(config, task, which)
            total += len(rows)
            pending[which, task.benchmark.name] = [row for row in rows if row["id"] not in done]
    left = sum(len(rows) for rows in pending.values())
    if left:
        from actors.cluster.connect import connect

        prompts = (row["prompt"] for rows in pending.values() for row in rows)
        load_front_end(config.policy.model).check_prompts(prompts, config.evaluate.engine.max_model_len)
        adapter = storage.join(config.run.dir, stages.POLICY)
        rank = check_adapter(adapter)
        partials = {task.benchmark.name: task.stage.partial for task in tasks}
        with connect(config), Progress("evaluate", total, "answers", initial=total - left) as progress:
            from actors.engine.blocks import blocks_of
            from actors.evaluation.generator import answer_questions

            size = config.evaluate.batch_size
            # All of one policy before the other: the engine changes its weights once.
            ordered = sorted(pending.items(), key=lambda entry: entry[0][0] == AFTER)
            blocks = [block for _, rows in ordered for block in blocks_of(rows, size, QUESTIONS_SCHEMA)]
            try:
                for counts in answer_questions(config, blocks, adapter, rank, partials):
                    progress.advance(counts["answered"] + counts["rejected"])
            except Exception as error:
                raise (find_user_error(error) or error) from error
    for task in tasks:
        if not task.stage.is_complete():
            _publish_answers(config, task)


def _publish_answers(config: Config, task: Task) -> None:
    wanted = {row["id"] for which in POLICIES for row in _questions(config, task, which)}
    if missing := wanted - _done(task):
        raise RuntimeError(f"{len(missing)} questions of {task.benchmark.title} came back without an answer")
    answers = _read_answers(task, task.stage.partial)
    lines = "".join(answer_lines(task.benchmark, which, answers[which]) for which in POLICIES)
    storage.write_bytes(storage.join(task.stage.partial, ANSWERS_FILE), lines.encode())
    rejected = len(list(storage.read_rows(storage.join(task.stage.partial, REJECTED_FOLDER), ["id"])))
    task.stage.publish({"rows": len(wanted) - rejected, "rejected": rejected})


def _read_answers(task: Task, folder: str) -> dict[str, dict[str, str]]:
    responses = {row["id"]: row["response"] for row in storage.read_rows(folder, ["id", "response"])}
    found: dict[str, dict[str, str]] = {}
    for which in POLICIES:
        ids = {question.id: task.row_id(which, question) for question in task.benchmark.questions}
        found[which] = {id_: responses[row] for id_, row in ids.items() if row in responses}
    return found


def _collect(task: Task, cut_off: dict[tuple[str, str], int]) -> dict[str, dict[str, str]]:
    """The published answers by policy; counts those that the limit of tokens has cut off."""
    counts: dict[str, int] = defaultdict(int)
    for row in storage.read_rows(task.stage.folder, ["which", "finish_reason"]):
        counts[row["which"]] += row["finish_reason"] == "length"
    cut_off |= {(task.benchmark.name, which): counts[which] for which in POLICIES}
    return _read_answers(task, task.stage.folder)


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
    """Write ``benchmarks.json``: the latest figures of every benchmark."""
    from fgaif_ray.statistics.intervals import CONFIDENCE

    uri = storage.join(config.run.dir, RESULTS_FILE)
    known = {**(storage.read_json(uri)["benchmarks"] if storage.exists(uri) else {}), **results}
    ordered = {name: known[name] for name in NAMES if name in known}
    storage.write_json(uri, {"confidence": CONFIDENCE, "benchmarks": ordered})


def _show_cost(config: Config, benchmarks: Sequence[Benchmark], tasks: Sequence[Task], given: Answers) -> None:
    """Print how many answers and reviews are to be made, and what the judge would cost."""
    from jobs import evaluate_judge

    for task in tasks:
        wanted = {row["id"] for which in POLICIES for row in _questions(config, task, which)}
        done = _done(task)
        say(f"evaluate: {task.benchmark.title}: {len(wanted - done)} of {len(wanted)} answers are to be made.")
        if task.benchmark.judged:
            known = _read_answers(task, task.stage.folder) if task.stage.is_complete() else {}
            given[task.benchmark.name] = {
                which: {
                    # An answer that is not there is taken to be as long as it may become.
                    question.id: known.get(which, {}).get(question.id, f"{which} " * question.max_tokens)
                    for question in task.benchmark.questions
                }
                for which in POLICIES
            }
    evaluate_judge.show_cost(config, benchmarks, given)


MODES: Final = (
    Mode(
        "--benchmarks",
        {"metavar": "NAMES", "help": "pope,chair,amber,mmhal,llava-bench: run these public benchmarks instead"},
        run_benchmarks,
        {
            "--answers": {"nargs": "+", "metavar": "FILE", "help": "score these answers (JSON lines), start no engine"},
            "--dry-run": {"action": "store_true", "help": "tell what would be asked and paid, and do nothing"},
        },
    ),
)

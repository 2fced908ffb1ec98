"""The answers of both policies to public benchmarks, by one engine; a stage for each benchmark."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fgaif_ray import storage
from fgaif_ray.config import BenchmarkConfig, Config
from fgaif_ray.errors import find_user_error
from fgaif_ray.evaluation import AFTER, POLICIES
from fgaif_ray.evaluation.benchmarks.answers import answer_lines
from fgaif_ray.evaluation.benchmarks.base import Benchmark, BenchmarkQuestion
from fgaif_ray.evaluation.rows import QUESTIONS_SCHEMA, REJECTED_FOLDER, EvaluationQuestion
from fgaif_ray.progress import Progress
from fgaif_ray.records import fingerprint
from fgaif_ray.storage import stages
from fgaif_ray.vlm.checkpoint import check_adapter
from fgaif_ray.vlm.front_end import load_front_end

ANSWERS_FILE: Final = "answers.jsonl"
IMAGES_FOLDER: Final = "benchmark_images"
"""Folder of a run for images that come within official files."""


@dataclass(frozen=True, slots=True)
class Task:
    """A benchmark that the policies answer."""

    benchmark: Benchmark
    config: BenchmarkConfig
    stage: storage.Stage
    images: Mapping[str, str]
    """Path or URI by official name."""

    def image_of(self, question: BenchmarkQuestion) -> str:
        """Path or URI of a question's image; empty where it has none."""
        return self.images[question.image] if question.image else ""

    def row_id(self, which: str, question: BenchmarkQuestion) -> str:
        """Identity of the answer; questions that several splits share have one."""
        image, prompt = self.image_of(question), question.prompt + self.config.suffix
        return fingerprint(which, self.benchmark.name, image, prompt, question.max_tokens)


def unpacked_images(config: Config, benchmark: Benchmark) -> dict[str, str]:
    """Where the images go that come within the official file, by official name."""
    folder = storage.join(config.run.dir, IMAGES_FOLDER, benchmark.name)
    asked = {question.image for question in benchmark.questions}
    return {name: storage.join(folder, name) for name in benchmark.embedded_images() if name in asked}


def unpack_images(task: Task) -> None:
    """Write the images that come within the official file and are to be asked about, unless they are there."""
    if task.config.images is not None:
        return
    for name, content in task.benchmark.embedded_images().items():
        if name in task.images and not storage.exists(task.images[name]):
            storage.write_bytes(task.images[name], content())


def done(task: Task) -> set[str]:
    """Questions that an earlier attempt has answered or rejected."""
    folder = task.stage.readable_folder
    if folder is None:
        return set()
    folders = (folder, storage.join(folder, REJECTED_FOLDER))
    return {row["id"] for each in folders for row in storage.read_rows(each, ["id"])}


def questions_of(config: Config, task: Task, which: str) -> list[EvaluationQuestion]:
    """The questions to one policy, each once."""
    found = {}
    for question in task.benchmark.questions:
        id_ = task.row_id(which, question)
        found[id_] = EvaluationQuestion(
            id=id_,
            which=which,
            task=task.benchmark.name,
            image=task.image_of(question),
            prompt=question.prompt + task.config.suffix,
            temperature=0.0,
            max_tokens=question.max_tokens,
            seed=config.run.seed,
        )
    return list(found.values())


@storage.writes_run("benchmark")
def answer(config: Config, tasks: list[Task]) -> None:
    """Answer what is not answered yet with one engine, and publish each benchmark's answers."""
    pending: dict[tuple[str, str], list[EvaluationQuestion]] = {}
    total = 0
    for task in tasks:
        if task.stage.is_complete():
            continue
        task.stage.begin(overwrite=config.run.overwrite)
        known = done(task)
        for which in POLICIES:
            questions = questions_of(config, task, which)
            total += len(questions)
            pending[which, task.benchmark.name] = [question for question in questions if question.id not in known]
    left = sum(len(questions) for questions in pending.values())
    if left:
        from actors.cluster.connect import connect

        asked = [question for questions in pending.values() for question in questions]
        prompts = ((question.prompt, len(question.images)) for question in asked)
        for task in tasks:
            unpack_images(task)
        front_end = load_front_end(config.policy.model, config.data.chat_template_kwargs)
        front_end.check_prompts(prompts, config.evaluate.engine.max_model_len)
        adapter = storage.join(config.run.dir, stages.POLICY)
        rank = check_adapter(adapter)
        partials = {task.benchmark.name: task.stage.partial for task in tasks}
        with connect(config), Progress("evaluate", total, "answers", initial=total - left) as progress:
            from actors.engine.blocks import blocks_of
            from actors.evaluation.generator import answer_questions

            size = config.evaluate.batch_size
            # All of one policy before the other: the engine changes its weights once.
            ordered = sorted(pending.items(), key=lambda entry: entry[0][0] == AFTER)
            blocks = [block for _, some in ordered for block in blocks_of(some, size, QUESTIONS_SCHEMA)]
            try:
                for counts in answer_questions(config, blocks, adapter, rank, partials):
                    progress.advance(counts.done + counts.rejected)
            except Exception as error:
                raise (find_user_error(error) or error) from error
    for task in tasks:
        if not task.stage.is_complete():
            _publish_answers(config, task)


def _publish_answers(config: Config, task: Task) -> None:
    wanted = {question.id for which in POLICIES for question in questions_of(config, task, which)}
    if missing := wanted - done(task):
        raise RuntimeError(f"{len(missing)} questions of {task.benchmark.title} came back without an answer")
    answers = read_answers(task, task.stage.partial)
    lines = "".join(answer_lines(task.benchmark, which, answers[which]) for which in POLICIES)
    storage.write_bytes(storage.join(task.stage.partial, ANSWERS_FILE), lines.encode())
    rejected = len(list(storage.read_rows(storage.join(task.stage.partial, REJECTED_FOLDER), ["id"])))
    task.stage.publish({"rows": len(wanted) - rejected, "rejected": rejected})


def read_answers(task: Task, folder: str) -> dict[str, dict[str, str]]:
    """Answers in a folder of the task, by policy and id of the question."""
    responses = {row["id"]: row["response"] for row in storage.read_rows(folder, ["id", "response"])}
    found: dict[str, dict[str, str]] = {}
    for which in POLICIES:
        ids = {question.id: task.row_id(which, question) for question in task.benchmark.questions}
        found[which] = {id_: responses[row] for id_, row in ids.items() if row in responses}
    return found


def collect(task: Task, cut_off: dict[tuple[str, str], int]) -> dict[str, dict[str, str]]:
    """The published answers by policy; counts those that the limit of tokens has cut off."""
    counts: dict[str, int] = defaultdict(int)
    for row in storage.read_rows(task.stage.folder, ["which", "finish_reason"]):
        counts[row["which"]] += row["finish_reason"] == "length"
    cut_off |= {(task.benchmark.name, which): counts[which] for which in POLICIES}
    return read_answers(task, task.stage.folder)

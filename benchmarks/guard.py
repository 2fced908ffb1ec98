"""What the guard's modes do to hallucination and coverage, what they cost, and the latency that they add.

    python -m benchmarks.guard --run runs/shapes [--quick]

Takes a finished run of the embedded world: its policy before and after alignment behind vLLM's own server, its reward
models behind the reward service, its held-out images, whose truth is known. Everything runs on this machine. Answers
are sampled at T=1, ``--samples`` to each image, and all modes are applied to the same ones. Prints a table for each
policy and mode, for each rule of choice and for thresholds of ``strip``. The last line is one JSON object:

* ``rows``: for each row of the table hallucination, coverage, words, tokens and scored answers per answer;
* ``latency``: median seconds of an answer through the guard, over those of the same request to the endpoint itself, by
  mode; the two take turns.
"""

import argparse
import asyncio
import base64
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from fgaif_ray.config import Config, change_config, load_config
from fgaif_ray.evaluation.hallucination import Description, measure_descriptions
from fgaif_ray.guard.choosing import ChoiceRule, rank
from fgaif_ray.guard.judgement import AnswerJudgement, read_judgement
from fgaif_ray.guard.stripping import strip_answer
from fgaif_ray.segments import Span
from fgaif_ray.serving.client import AsyncRewardClient, reward_item
from fgaif_ray.tables import table_lines

if TYPE_CHECKING:
    from actors.engine.openai_server import OpenAIServer
    from fgaif_ray.shapes.scenes import Scene

ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
THRESHOLDS: Final = (0.3, 0.5, 0.7, 0.9)
CONCURRENCY: Final = 16
LATENCY_REQUESTS: Final = 12
QUICK_IMAGES: Final = 24


@dataclass(frozen=True)
class Question:
    """A held-out image with its prompt and truth."""

    image: str
    prompt: str
    scene: "Scene"

    def messages(self) -> list[dict[str, Any]]:
        """The question as a chat request has it."""
        url = f"data:image/png;base64,{base64.b64encode(Path(self.image).read_bytes()).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": self.prompt}]
        return [{"role": "user", "content": content}]


@dataclass(frozen=True)
class Sampled:
    """The answers of one policy to one question."""

    texts: list[str]
    finished: list[bool]
    tokens: int
    """Of all of them."""


def draw_questions(config: Config, count: int | None) -> list[Question]:
    """The first held-out images of the run with their prompts."""
    from fgaif_ray.sources import load_truth, prepare_images

    truth = load_truth(config)
    assert truth is not None, "the run has to be one of the embedded world"
    sets = prepare_images(config)
    asked = [(images[0], prompt) for images, prompt in sets.questions(sets.evaluate, config.data.prompts)]
    return [Question(image, prompt, truth[image]) for image, prompt in asked[:count]]


@contextmanager
def served_policies(config: Config, folder: str) -> Iterator["OpenAIServer"]:
    """The policy before and after alignment behind the server that vLLM brings along."""
    import torch

    from actors.engine.openai_server import OpenAIServer, free_port
    from actors.engine.serve_command import serving_command

    arguments = serving_command(config)[2:]
    port = free_port()
    arguments[arguments.index("--port") + 1] = str(port)
    if not torch.cuda.is_available():
        arguments.append("--no-enable-chunked-prefill")
    model, *options = arguments
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, *options]
    log = str(Path(folder) / "policies.log")
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=file, stderr=file, env={**os.environ}, start_new_session=True
        )
    server = OpenAIServer(f"http://127.0.0.1:{port}/v1", "", log, process)
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()


async def sample(config: Config, url: str, model: str, questions: Sequence[Question], count: int) -> list[Sampled]:
    """Some answers at T=1 to each question."""
    from openai import AsyncOpenAI

    free = asyncio.Semaphore(CONCURRENCY)

    async def ask(client: AsyncOpenAI, index: int, question: Question) -> Sampled:
        messages: Any = question.messages()
        async with free:
            answer = await client.chat.completions.create(
                model=model,
                messages=messages,
                n=count,
                temperature=1.0,
                seed=config.run.seed + 1000 * index,
                max_completion_tokens=config.evaluate.max_tokens,
            )
        assert answer.usage is not None
        return Sampled(
            [choice.message.content or "" for choice in answer.choices],
            [choice.finish_reason == "stop" for choice in answer.choices],
            answer.usage.completion_tokens,
        )

    async with AsyncOpenAI(base_url=url, api_key="none", timeout=600) as client:
        return await asyncio.gather(*(ask(client, index, one) for index, one in enumerate(questions)))


async def judge(url: str, questions: Sequence[Question], sampled: Sequence[Sampled]) -> list[list[AnswerJudgement]]:
    """The reward service's verdicts on all answers."""
    items = [
        reward_item(question.image, question.prompt, text)
        for question, one in zip(questions, sampled, strict=True)
        for text in one.texts
    ]
    async with AsyncRewardClient(url) as client:
        scored = iter([read_judgement(one) for one in await client.score(items)])
    return [[next(scored) for _ in one.texts] for one in sampled]


def stripped(text: str, judged: AnswerJudgement, threshold: float) -> str:
    """What the guard's mode ``strip`` leaves of an answer."""
    spans = [Span(one.start, one.end) for one in judged.segments]
    return strip_answer(text, spans, [one.hallucination > threshold for one in judged.segments])[0]


def rows_of(
    config: Config, name: str, questions: Sequence[Question], sampled: Sequence[Sampled], judged: Any
) -> dict[str, dict[str, float]]:
    """The rows of one policy."""
    count = len(sampled[0].texts)
    tokens = sum(one.tokens for one in sampled) / len(sampled)
    rows = {}

    def add(row: str, texts: Sequence[str], finished: Sequence[bool], written: float, scored: int) -> None:
        described = [
            Description(question.image, question.scene, text, done)
            for question, text, done in zip(questions, texts, finished, strict=True)
        ]
        found = measure_descriptions(described)
        low, high = found["intervals"]["hallucination_rate"]["overall"]
        rows[row] = {
            "hallucination": found["hallucination_rate"]["overall"],
            "hallucination_low": low,
            "hallucination_high": high,
            "coverage": found["coverage"],
            "words": found["words_per_response"],
            "empty": sum(not text.strip() for text in texts) / len(texts),
            "tokens": written,
            "scored": scored,
        }

    firsts, first_done = [one.texts[0] for one in sampled], [one.finished[0] for one in sampled]
    add(name, firsts, first_done, tokens / count, 0)
    for threshold in sorted({*THRESHOLDS, config.guard.threshold}):
        texts = [stripped(text, one[0], threshold) for text, one in zip(firsts, judged, strict=True)]
        add(f"{name} + strip {threshold:g}", texts, first_done, tokens / count, 1)
    for rule in get_args(ChoiceRule):
        best = [rank(one, rule)[0] for one in judged]
        texts = [one.texts[index] for one, index in zip(sampled, best, strict=True)]
        done = [one.finished[index] for one, index in zip(sampled, best, strict=True)]
        add(f"{name} + best of {count} by {rule}", texts, done, tokens, count)
    return rows


def show(rows: Mapping[str, Mapping[str, float]]) -> None:
    """Print the table."""
    cells = [("answers", "hallucination", "coverage", "words", "empty", "tokens", "scored")]
    for name, row in rows.items():
        interval = f"[{100 * row['hallucination_low']:.1f}, {100 * row['hallucination_high']:.1f}]"
        cells.append(
            (
                name,
                f"{100 * row['hallucination']:.1f} {interval}",
                f"{100 * row['coverage']:.1f}",
                f"{row['words']:.1f}",
                f"{100 * row['empty']:.1f}",
                f"{row['tokens']:.1f}",
                f"{row['scored']:.0f}",
            )
        )
    print("\n".join(table_lines(cells, right=set(range(1, 7)), rule=True)))


def measure_latency(config: Config, upstream: str, rewards: str, questions: Sequence[Question]) -> dict[str, float]:
    """Median seconds through the guard over those of the endpoint itself, by mode; one request at a time."""
    from openai import OpenAI

    from actors.guard import service as guard_service

    ratios = {}
    for mode in ("annotate", "strip", "best-of-n"):
        prefix = f"/guard-{mode}"
        guard = change_config(
            config,
            [f"guard.upstream={upstream}", f"guard.mode={mode}", f"guard.route_prefix={prefix}", "guard.port=0"],
        )
        url = guard_service.deploy(guard_service.guard_settings(guard, guard.guard, rewards, None))
        taken: dict[str, list[float]] = {"direct": [], "guard": []}
        clients = {
            "direct": OpenAI(base_url=upstream, api_key="none"),
            "guard": OpenAI(base_url=f"{url}/v1", api_key=os.environ.get(guard_service.GUARD_TOKEN_VARIABLE, "none")),
        }
        for index, question in enumerate(questions[: LATENCY_REQUESTS + 1]):
            messages: Any = question.messages()
            for name, client in clients.items():
                started = time.perf_counter()
                client.chat.completions.create(
                    model="base", messages=messages, seed=index, max_completion_tokens=config.evaluate.max_tokens
                )
                if index:  # the first one warms both up
                    taken[name].append(time.perf_counter() - started)
        for client in clients.values():
            client.close()
        guard_service.shutdown(guard.guard.app_name)
        direct, through = statistics.median(taken["direct"]), statistics.median(taken["guard"])
        ratios[mode] = through / direct
        print(f"latency, {mode}: {1e3 * through:.0f} ms through the guard, {1e3 * direct:.0f} ms without")
    return ratios


def measure(config: Config, count: int | None, samples: int, folder: str) -> dict[str, Any]:
    """All figures."""
    from actors.cluster.connect import connect
    from actors.rewards import service as reward_service
    from fgaif_ray.rewards.files import published_reward_folders

    questions = draw_questions(config, count)
    rows: dict[str, dict[str, float]] = {}
    with connect(config), served_policies(config, folder) as server:
        info = reward_service.deploy(config, published_reward_folders(config))
        try:
            for name in ("base", "aligned"):
                sampled = asyncio.run(sample(config, server.base_url, name, questions, samples))
                judged = asyncio.run(judge(info.url, questions, sampled))
                rows |= rows_of(config, name, questions, sampled, judged)
            print(f"{len(questions)} images, {samples} answers to each at T=1, in percent:")
            show(rows)
            latency = measure_latency(config, server.base_url, info.url, questions)
        finally:
            reward_service.shutdown(info.app_name)
    return {"images": len(questions), "samples": samples, "rows": rows, "latency": latency}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="runs/shapes", help="folder of a finished run of the embedded world")
    parser.add_argument("--images", type=int, help="held-out images; all of the run unless given")
    parser.add_argument("--samples", type=int, default=4, help="answers to each image, of which the best is chosen")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_IMAGES} images")
    options = parser.parse_args(arguments)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    config = load_config(Path(options.run) / "config.yaml", [f"run.dir={options.run}", "serve.port=0"])
    count = QUICK_IMAGES if options.quick else options.images
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(config, count, options.samples, folder)
    print(json.dumps(figures, default=float))


if __name__ == "__main__":
    main()

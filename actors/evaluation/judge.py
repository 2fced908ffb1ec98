"""The judge of benchmarks: both models' answers in one run, each review paid once."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from fgaif_ray import storage
from fgaif_ray.config import Config, JudgeConfig
from fgaif_ray.errors import UserError
from fgaif_ray.evaluation.benchmarks.answers import Answers
from fgaif_ray.evaluation.benchmarks.base import Benchmark, JudgeQuestion, Review, Reviews
from fgaif_ray.progress import Progress, say

SERVER_LOG: Final = "judging-server.log"
AnswerPlace = tuple[str, str, str, bool]
"""Benchmark, model, question id, and whether the order is swapped."""


def check(config: Config, benchmarks: Sequence[Benchmark]) -> None:
    """Raises UserError where a benchmark needs a judge and there is none."""
    judged = [benchmark.title for benchmark in benchmarks if benchmark.judged]
    if judged and config.evaluate.judge is None:
        raise UserError(f"{judged[0]} is scored by a judge: set evaluate.judge.base_url and evaluate.judge.model.")


def description(config: Config) -> dict[str, Any]:
    """What the scores depend on: scores of two judges cannot be compared."""
    assert config.evaluate.judge is not None
    return config.evaluate.judge.model_dump(include={"model", "serve_model", "max_tokens", "temperature"})


def collect(config: Config, benchmarks: Sequence[Benchmark], answers: Answers) -> dict[tuple[str, str], Reviews]:
    """Reviews by benchmark and model; nothing without a benchmark that is judged.

    Raises:
        UserError: the judge cannot be used, or its budget is used up. What was paid is kept.
    """
    from fgaif_ray.calls.ledger import read_ledger
    from fgaif_ray.evaluation.judging import collect_reviews

    judge = config.evaluate.judge
    questions = _questions(benchmarks, answers)
    if judge is None or not questions:
        return {}
    with (
        _endpoint(config, judge, needed=_unanswered(config, judge, questions) > 0) as (base_url, api_key),
        Progress("judge", len(questions), "reviews") as progress,
    ):
        reviews = collect_reviews(judge, base_url, api_key, config.run.dir, questions, progress.advance)
    ledger = read_ledger(config.run.dir, judge.purpose)
    money = "" if judge.price is None else f", {ledger.money(judge.price):.4g} {judge.price.currency}"
    say(
        f"benchmark: judging has taken {ledger.calls} calls, {ledger.prompt_tokens} prompt and "
        f"{ledger.completion_tokens} completion tokens{money}; {ledger.cache_hits} reviews were there already."
    )
    found: dict[tuple[str, str], dict[tuple[str, bool], Review]] = {}
    for (benchmark, model, id_, swapped), review in reviews.items():
        found.setdefault((benchmark, model), {})[id_, swapped] = review
    return dict(found)


def show_cost(config: Config, benchmarks: Sequence[Benchmark], answers: Answers) -> None:
    """Print calls, tokens and money of the reviews; calls nothing."""
    from fgaif_ray.calls.answers import AnswerIndex, cache_folder
    from fgaif_ray.calls.tokens import PromptCounter
    from fgaif_ray.evaluation.judging import Judge

    judge = config.evaluate.judge
    questions = _questions(benchmarks, answers)
    if judge is None or not questions:
        say("benchmark: no judge is asked; nothing was called or written.")
        return
    caller = Judge(judge, None, None)
    counter = PromptCounter(judge.serve_model or judge.model)
    asked = {caller.key(question): question for question in questions.values()}
    index = AnswerIndex(cache_folder(config.run.dir, judge.cache, judge.purpose))
    missing = [question for key, question in asked.items() if index.find(key) is None]
    index.close()
    prompt_tokens = sum(counter.count(question.messages) for question in missing)
    completion_tokens = sum(caller.size(question).completion_tokens for question in missing)
    say(
        f"benchmark: {len(missing)} calls of the judge, {len(questions) - len(missing)} saved (reviews that are there, "
        f"or equal answers); {prompt_tokens} prompt tokens, about {completion_tokens} completion tokens."
    )
    if judge.price is not None:
        money = judge.price.cost(prompt_tokens, completion_tokens)
        say(f"benchmark: about {money:,.4f} {judge.price.currency}; repeated calls come on top.")
    say(f"Prompt tokens are {counter.how}; answers that are not made yet count as long as they may become.")
    say("Nothing was called or written.")


def _questions(benchmarks: Sequence[Benchmark], answers: Answers) -> dict[AnswerPlace, JudgeQuestion]:
    """What is asked about all models: one after the other they would meet the judge on different days."""
    return {
        (benchmark.name, model, question.id, question.swapped): question
        for benchmark in benchmarks
        for model, of_model in answers.get(benchmark.name, {}).items()
        for question in benchmark.judge_questions(of_model)
    }


def _unanswered(config: Config, judge: JudgeConfig, questions: Mapping[AnswerPlace, JudgeQuestion]) -> int:
    """Questions that no kept review answers."""
    from fgaif_ray.calls.answers import AnswerIndex, cache_folder
    from fgaif_ray.evaluation.judging import Judge

    caller = Judge(judge, None, None)
    index = AnswerIndex(cache_folder(config.run.dir, judge.cache, judge.purpose))
    try:
        return sum(index.find(caller.key(question)) is None for question in questions.values())
    finally:
        index.close()


@contextmanager
def _endpoint(config: Config, judge: JudgeConfig, *, needed: bool) -> Iterator[tuple[str | None, str | None]]:
    """Address and key of the judge; a server that is started here ends with the block."""
    from fgaif_ray.calls.chat_caller import check_address

    if not needed:
        yield None, None
    elif judge.serve_model is None:
        key = os.environ.get(judge.api_key_env)
        check_address(judge, judge.base_url, key)
        yield judge.base_url, key
    else:
        from actors.engine.openai_server import start_openai_server

        folder = config.run.dir.removeprefix("file://") if storage.is_local(config.run.dir) else "logs"
        log = os.path.join(folder, SERVER_LOG)
        server = start_openai_server(judge.serve_model, judge.model, judge.engine, log, judge.compact_json)
        try:
            server.wait_ready()
            yield server.base_url, server.api_key
        finally:
            server.stop()

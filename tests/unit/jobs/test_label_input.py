"""Bad input to the labelling job, through its command line: one sentence per kind, and what was done is kept.

Everything here is found out before Ray or an engine starts.
"""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.fake_openai import FakeOpenAI, Reply, Request
from support.label_helpers import ANNOTATOR, KEY_VARIABLE, answer_by_rule, make_config, write_responses
from transformers import LlamaConfig

from fgaif_ray import storage
from fgaif_ray.calls.ledger import read_ledger
from jobs.cli import EXIT_USER_ERROR, main

KEY = "secret-key"
NO_SCHEMA = "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model."


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOpenAI]:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with FakeOpenAI(answer_by_rule) as server:
        yield server


class Job:
    """A run with responses, labelled by its command line."""

    def __init__(self, folder: Path, url: str, **extractor: Any) -> None:
        self.config = make_config(folder, url, images=5, **extractor)
        self.responses = write_responses(self.config)
        self._file = folder / "config.yaml"
        self._file.write_text(yaml.safe_dump(self.config.model_dump(mode="json")))

    def label(self, *changes: str) -> int:
        arguments = ["--config", str(self._file), *(word for change in changes for word in ("--set", change))]
        return main("label", arguments)

    def is_labelled(self) -> bool:
        return storage.read_manifest(self.config.run.dir, "feedback") is not None


def the_sentence(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("label: ")]
    assert len(lines) == 1
    assert KEY not in lines[0]
    return lines[0]


@pytest.mark.parametrize("finds", ["models", "calls"])
@pytest.mark.parametrize(("key", "said"), [(None, "wants an API key"), (KEY, "refused the API key")])
def test_no_key_and_a_bad_key(
    endpoint: FakeOpenAI,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    finds: str,
    key: str | None,
    said: str,
) -> None:
    refusal = Reply.error(401, message=f"Incorrect API key provided: {key}")
    if finds == "models":
        endpoint.models = refusal
    endpoint.script(refusal)
    if key is not None:
        monkeypatch.setenv(KEY_VARIABLE, key)
    assert Job(tmp_path, endpoint.url, concurrency=1).label() == EXIT_USER_ERROR
    sentence = the_sentence(capsys)
    assert said in sentence and "set the environment variable" in sentence
    assert len(endpoint.requests) == (finds == "calls")


def test_an_endpoint_that_is_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        job = Job(tmp_path, f"http://127.0.0.1:{closed.getsockname()[1]}/v1")
        assert job.label() == EXIT_USER_ERROR
    assert "does not answer: start it or correct label.extractor.base_url" in the_sentence(capsys)
    assert not job.is_labelled()


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply.error(400, "invalid_request_error", NO_SCHEMA), "does not support answers that follow a JSON schema"),
        (Reply.error(404, "model_not_found"), "has no model 'rules'"),
        (Reply.error(429, "insufficient_quota"), "says that the quota is used up"),
        (Reply(body="<html>Welcome</html>"), "does not answer like an OpenAI-compatible one"),
        (Reply.error(501), "does not do chat completions with model 'rules' (status 501): correct label.extractor"),
        (Reply.error(405), "does not do chat completions with model 'rules' (status 405): correct label.extractor"),
        (Reply.error(422, "bad_request"), "fails on the first response (rejected: "),
    ],
    ids=["schema", "model", "quota", "another-service", "not-implemented", "not-allowed", "refused"],
)
def test_an_endpoint_that_cannot_be_used(
    endpoint: FakeOpenAI, tmp_path: Path, capsys: pytest.CaptureFixture[str], reply: Reply, said: str
) -> None:
    endpoint.script(reply)
    job = Job(tmp_path, endpoint.url, concurrency=1)
    assert job.label() == EXIT_USER_ERROR
    assert said in the_sentence(capsys)
    assert len(endpoint.requests) == 1
    assert not job.is_labelled()


def test_an_endpoint_that_fails_rejects_no_response(
    endpoint: FakeOpenAI, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint.reply = lambda number, body: Reply.error(500)
    job = Job(tmp_path, endpoint.url, concurrency=1)
    assert job.label("label.extractor.max_retries=0") == EXIT_USER_ERROR
    assert "fails on the first response (server: " in the_sentence(capsys)
    assert list(storage.read_rows(storage.join(job.config.run.dir, "feedback_rejected.partial"))) == []


def test_a_budget_that_has_no_room(endpoint: FakeOpenAI, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(tmp_path, endpoint.url)
    assert job.label("label.extractor.budget=1.0e-9") == EXIT_USER_ERROR
    assert "raise label.extractor.budget and run the same command again" in the_sentence(capsys)
    assert endpoint.requests == []


@pytest.mark.parametrize("kind", ["text", "missing"])
def test_a_verifier_that_sees_no_images(
    endpoint: FakeOpenAI, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    model = tmp_path / "model"
    if kind == "text":
        LlamaConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1).save_pretrained(model)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            (model / name).write_bytes((ANNOTATOR / name).read_bytes())
    assert Job(tmp_path / "run", endpoint.url).label(f"label.verifier.model={model}") == EXIT_USER_ERROR
    said = {"text": "is not supported (it is of the type 'llama'", "missing": "is not a folder here and not downloaded"}
    assert said[kind] in the_sentence(capsys)
    assert endpoint.requests == []


def test_what_was_answered_before_a_failure_is_kept(
    endpoint: FakeOpenAI, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def reply(number: int, body: Request) -> Reply:
        return answer_by_rule(number, body) if number == 0 else Reply.error(401)

    endpoint.reply = reply
    job = Job(tmp_path, endpoint.url, concurrency=1)
    assert [job.label(), job.label()] == [EXIT_USER_ERROR] * 2
    first, *later = (request["messages"] for request in endpoint.requests)
    assert first not in later
    totals = read_ledger(job.config.run.dir)
    assert (totals.answered, totals.prompt_tokens, totals.completion_tokens) == (1, *endpoint.tokens)

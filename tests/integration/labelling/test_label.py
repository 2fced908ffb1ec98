"""Labelling: real Ray Data, a real verification engine and the real OpenAI client.

Facts come from a local OpenAI-compatible server that reads the segment by rule.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.fake_openai import FakeOpenAI
from support.label_helpers import ANNOTATOR, KEY_VARIABLE, Rules, facts_of, make_config, write_responses

from fgaif_ray import storage
from fgaif_ray.errors import UserError
from fgaif_ray.feedback.labels import segment_labels, to_official
from fgaif_ray.records import FACT_TYPES
from jobs import label

ANSWERED_BEFORE_THE_QUOTA_ENDS = 45


@dataclass
class Endpoint:
    """A server with rules, and what they were asked."""

    server: FakeOpenAI
    rules: Rules

    @property
    def answered(self) -> Counter[tuple[str, str]]:
        return self.rules.answered


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    rules = Rules()
    with FakeOpenAI(rules) as server:
        yield Endpoint(server, rules)


class Labelled:
    """A run that first meets the end of its quota and is then run again."""

    def __init__(self, folder: Path, endpoint: Endpoint) -> None:
        self.config = make_config(folder, endpoint.server.url)
        self.responses = write_responses(self.config)
        self.malformed = self.responses[2]
        endpoint.rules.malformed = {self.malformed["response"]}
        endpoint.rules.quota = ANSWERED_BEFORE_THE_QUOTA_ENDS
        os.environ[KEY_VARIABLE] = "secret-key"
        try:
            with pytest.raises(UserError) as failure:
                label.run(self.config)
            self.failure = str(failure.value)
            self.published_after_failure = storage.read_manifest(self.config.run.dir, "feedback")
            self.answered_after_failure = endpoint.answered.total()
            endpoint.rules.quota = None
            label.run(self.config)
        finally:
            del os.environ[KEY_VARIABLE]
        self.feedback = list(storage.read_rows(storage.join(self.config.run.dir, "feedback")))
        self.rejected = list(storage.read_rows(storage.join(self.config.run.dir, "feedback_rejected")))
        self.metrics = storage.read_json(storage.join(self.config.run.dir, "feedback", "metrics.json"))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, endpoint: Endpoint, ray_cluster: Any) -> Labelled:
    return Labelled(tmp_path_factory.mktemp("label"), endpoint)


@pytest.mark.ray
@pytest.mark.vllm
class TestLabel:
    def test_end_of_the_quota_stops_the_job_with_one_sentence(self, labelled: Labelled) -> None:
        assert "quota" in labelled.failure and "\n" not in labelled.failure
        assert labelled.published_after_failure is None

    def test_no_call_is_repeated_after_the_interruption(self, labelled: Labelled, endpoint: Endpoint) -> None:
        assert labelled.answered_after_failure >= ANSWERED_BEFORE_THE_QUOTA_ENDS
        complete = [row["response"] for row in labelled.feedback]
        asked = [count for (text, _), count in endpoint.answered.items() if any(r.startswith(text) for r in complete)]
        assert len(asked) > len(complete)
        assert set(asked) == {1}

    def test_every_response_is_labelled_or_rejected_once(self, labelled: Labelled) -> None:
        ids = [row["sample_id"] for row in labelled.feedback + labelled.rejected]
        assert sorted(ids) == sorted(row["sample_id"] for row in labelled.responses)

    def test_rejected_rows_say_why(self, labelled: Labelled) -> None:
        reasons = {row["sample_id"]: row["reason"].partition(":")[0] for row in labelled.rejected}
        assert reasons == {
            labelled.malformed["sample_id"]: "malformed",
            labelled.responses[-1]["sample_id"]: "image",
        }

    def test_segments_join_to_the_response(self, labelled: Labelled) -> None:
        for row in labelled.feedback:
            assert "".join(segment["text"] for segment in row["segments"]) == row["response"]

    def test_facts_are_those_of_the_endpoint(self, labelled: Labelled) -> None:
        for row in labelled.feedback:
            for segment in row["segments"]:
                claimed = facts_of(row["response"][: segment["end"]].strip(), segment["text"].strip())
                for name in FACT_TYPES:
                    said = [fact["text"] for fact in segment["facts"] if fact["type"] == name]
                    assert said == list(dict.fromkeys(claimed[name]))

    def test_labels_follow_from_the_verdicts(self, labelled: Labelled) -> None:
        segments = [segment for row in labelled.feedback for segment in row["segments"]]
        for segment in segments:
            for fact in segment["facts"]:
                assert fact["consistent"] == (fact["p_consistent"] >= 0.5)
            verdicts = [(fact["type"], fact["consistent"]) for fact in segment["facts"]]
            assert segment["labels"] == segment_labels(verdicts, FACT_TYPES)

    def test_probabilities_equal_those_of_the_model_run_by_transformers(self, labelled: Labelled) -> None:
        import torch

        from fgaif_ray.feedback.prompts import load_prompt
        from fgaif_ray.images import load_image
        from fgaif_ray.vlm.backbone import load_backbone

        backbone = load_backbone(str(ANNOTATOR), "float32")
        row = labelled.feedback[0]
        image = load_image(row["image"])
        facts = [fact for segment in row["segments"] for fact in segment["facts"]]
        for fact in facts[:4]:
            prompt = load_prompt("verify-v1").render(statement=fact["text"])
            encoded = backbone.front_end.encode_prompt(prompt, [image])
            with torch.no_grad():
                ids = torch.tensor([encoded.input_ids])  # [1, expanded_prompt_tokens]
                logits = backbone.model(input_ids=ids, **encoded.image_inputs).logits[0, -1]
            words = label_words(backbone.front_end.tokenizer)
            weights = {word: logits[list(tokens)].exp().sum() for word, tokens in words.items()}
            assert fact["p_consistent"] == pytest.approx(float(weights["yes"] / sum(weights.values())), abs=2e-3)

    def test_metrics_count_what_is_there(self, labelled: Labelled, endpoint: Endpoint) -> None:
        metrics = labelled.metrics
        segments = [segment for row in labelled.feedback for segment in row["segments"]]
        assert metrics["rows"] == len(labelled.feedback)
        assert metrics["rejected"] == {"total": 2, "by_reason": {"malformed": 1, "image": 1}}
        assert metrics["segments"] == len(segments)
        assert sum(metrics["facts"].values()) == sum(len(segment["facts"]) for segment in segments)
        assert all(sum(metrics["labels"][name].values()) == len(segments) for name in FACT_TYPES)
        assert metrics["extraction"]["prompt_tokens"] == 10 * endpoint.answered.total()

    def test_ledger_equals_the_servers_account_over_both_attempts(self, labelled: Labelled, endpoint: Endpoint) -> None:
        ledger = storage.read_json(storage.join(labelled.config.run.dir, "feedback", "ledger.json"))
        answered = endpoint.answered.total()
        assert (ledger["prompt_tokens"], ledger["completion_tokens"]) == (10 * answered, 5 * answered)
        assert ledger["calls"] == answered + endpoint.rules.refused
        assert ledger["money"] == pytest.approx(answered * (10 * 2.0 + 5 * 8.0) / 1e6)
        assert ledger["may_be_billed"]["calls"] == 0

    def test_presence_of_facts_agrees_with_the_truth(self, labelled: Labelled) -> None:
        for name in FACT_TYPES:
            confusion = labelled.metrics["agreement"][name]["confusion"]
            assert confusion[0][1] == confusion[0][2] == confusion[1][0] == confusion[2][0] == 0
            assert confusion[0][0] > 0

    def test_official_form_reads_back_to_the_same_labels(self, labelled: Labelled) -> None:
        with open(storage.join(labelled.config.run.dir, "feedback", "official.jsonl")) as file:
            official = {line["image"]: line for line in map(json.loads, file)}
        for row in labelled.feedback:
            line = official[row["image"]]
            assert line["sub"] == [segment["text"] for segment in row["segments"]]
            codes = [[segment["labels"][name] for name in FACT_TYPES] for segment in row["segments"]]
            assert line["labels"] == [[to_official(code) for code in triple] for triple in codes]

    def test_finished_stage_is_left_alone(self, labelled: Labelled, endpoint: Endpoint) -> None:
        answered = endpoint.answered.total()
        label.run(labelled.config)
        assert endpoint.answered.total() == answered

    def test_key_goes_to_the_endpoint_and_into_no_file(self, labelled: Labelled, endpoint: Endpoint) -> None:
        assert set(endpoint.server.authorizations) == {"Bearer secret-key"}
        files = [path for path in Path(labelled.config.run.dir).rglob("*") if path.is_file()]
        assert not [path for path in files if b"secret-key" in path.read_bytes()]


def label_words(tokenizer: Any) -> dict[str, set[int]]:
    texts = {index: tokenizer.decode([index]).strip().casefold() for index in range(len(tokenizer))}
    return {word: {index for index, text in texts.items() if text == word} for word in ("yes", "no")}

"""What tests of the labelling job share: its configuration, responses with known claims, and an endpoint that reads
those claims by rule, so that every answer is known."""

import hashlib
import json
import random
import re
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fgaif_ray import storage
from fgaif_ray.calls import ledger
from fgaif_ray.config import Config
from fgaif_ray.records import FACT_TYPES, RESPONSES_SCHEMA, sample_identity
from fgaif_ray.shapes.captions import POLICY_ERRORS, write_caption
from fgaif_ray.shapes.oracle import read_claims
from fgaif_ray.sources import load_truth, prepare_images
from fgaif_ray.storage.line_log import read_lines
from support.fake_openai import FakeOpenAI, Reply, Request
from support.paths import ROOT

ANNOTATOR = ROOT / "fgaif_ray" / "shapes" / "checkpoints" / "annotator"
KEY_VARIABLE = "FGAIF_TEST_KEY"
PROMPT = "Describe this image in detail."
ROWS = 24
BLOCK = 6
ENGINE = {
    "dtype": "float32",
    "max_model_len": 256,
    "max_num_seqs": 64,
    "kv_cache_gib": 0.25,
    "enforce_eager": True,
    "threads": 1,
}
PRICE = {"input_per_million": 2.0, "output_per_million": 8.0, "currency": "EUR"}


def make_config(run: Path, base_url: str, images: int = ROWS, **extractor: Any) -> Config:
    """A run on so many scenes; further keys go into ``label.extractor``."""
    return Config.model_validate(
        {
            "run": {"dir": str(run)},
            "data": {"source": "shapes", "sample_images": images, "align_images": 1, "evaluate_images": 1},
            "policy": {"model": "policy"},
            "label": {
                "batch_size": BLOCK,
                "extractor": {
                    "base_url": base_url,
                    "model": "rules",
                    "prompt": "extract-short-v2",
                    "concurrency": 8,
                    "api_key_env": KEY_VARIABLE,
                    "workers": 2,
                    "requests_per_minute": 60_000,
                    "price": PRICE,
                }
                | extractor,
                "verifier": {"model": str(ANNOTATOR), "engine": ENGINE},
            },
            "rewards": {"backbone": str(ANNOTATOR)},
        }
    )


def write_responses(config: Config, per_image: int = 1, poison: Sequence[bytes] = ()) -> list[dict[str, Any]]:
    """Publish captions with errors as if a policy had sampled them; the image of the last one is gone.

    Args:
        config: of the run.
        per_image: captions of each image.
        poison: files that the last ones but one have for images.
    """
    truth = load_truth(config)
    assert truth is not None
    rows: list[dict[str, Any]] = []
    for (image,) in prepare_images(config).sample:
        sha = hashlib.sha256(storage.read_bytes(image)).hexdigest()
        for seed in range(per_image):
            settings = {"seed": seed} if seed else {}
            rows.append(
                {
                    "sample_id": sample_identity(sha, PROMPT, "policy", settings),
                    "image": image,
                    "image_sha256": sha,
                    "prompt": PROMPT,
                    "response": write_caption(truth[image], POLICY_ERRORS, random.Random(len(rows))),
                    "token_ids": None,
                    "finish_reason": "stop",
                    "model": "policy",
                }
            )
    rows[-1] |= {"image": f"{rows[-1]['image']}.gone", "image_sha256": "gone"}
    for index, data in enumerate(poison):
        path = Path(config.run.dir) / f"poison-{index}.jpg"
        path.write_bytes(data)
        rows[-2 - index] |= {"image": str(path), "image_sha256": f"poison-{index}"}
    stage = storage.Stage(config.run.dir, "responses", "f")
    stage.begin()
    storage.write_part(stage.partial, rows, RESPONSES_SCHEMA)
    stage.publish({"rows": len(rows)})
    return rows


def asked(body: Request) -> tuple[str, str]:
    """Text up to the segment's end, and the segment, that a request of ``extract-short-v2`` is about."""
    prompt = body["messages"][0]["content"]
    found = re.fullmatch(r"Description: (.*)\nSub-sentence: (.*)\nFacts:", prompt, re.DOTALL)
    assert found is not None
    return found[1], found[2]


def facts_of(context: str, segment: str) -> dict[str, list[str]]:
    """The facts that the rules see in the segment that ends a text."""
    end = len(context)
    spans = [(0, end - len(segment)), (end - len(segment), end)]
    claims = read_claims(context, spans)[1]
    return {name: [claim.statement() for claim in claims if claim.type == name] for name in FACT_TYPES}


def answer_by_rule(number: int, body: Request) -> Reply:
    """The facts, at a number of completion tokens that no other call has."""
    return Reply.completion(facts_of(*asked(body)), usage=(len(json.dumps(body["messages"])), number + 1))


def check_account(run: str, endpoint: FakeOpenAI, may_be_lost: int) -> None:
    """The run's account against the server's; answers are told apart by their numbers of completion tokens.

    Args:
        run: folder of the run.
        endpoint: answers by rule; its answers arrive unless their worker was killed or gave up waiting.
        may_be_lost: most calls that can have been under way when something was killed.
    """
    folder = storage.join(run, ledger.FOLDER.format(purpose=ledger.EXTRACTION))
    lines = [line for _, line in read_lines(folder, ledger.PREFIX)]
    arrived = [tuple(line["tokens"]) for line in lines if "answered" in line]
    billed = {tokens: json.dumps(body["messages"]) for body, tokens in endpoint.billed}
    totals = ledger.read_ledger(run)
    print(
        f"{len(endpoint.requests)} requests, {len(billed)} billed, {len(arrived)} arrived, "
        f"{totals.unknown_calls} without a known end"
    )
    assert len(set(arrived)) == len(arrived) and set(arrived) <= billed.keys()
    assert totals.prompt_tokens == sum(prompt for prompt, _ in arrived)
    # Every request that the server saw had been written down before.
    assert len(endpoint.requests) <= totals.calls
    # What was billed and did not arrive is among the calls without a known end, and there are no more of those than
    # calls that were under way when something was killed, or timed out.
    assert len(billed) - len(arrived) <= totals.unknown_calls
    assert totals.unknown_calls <= may_be_lost + totals.failed_by_reason["timeout"]
    # Once an answer has arrived, its question is not asked again.
    last_asked = {json.dumps(body["messages"]): number for number, body in enumerate(endpoint.requests)}
    repeated = [billed[tokens] for tokens in arrived if last_asked[billed[tokens]] != tokens[1] - 1]
    assert not repeated


class Rules:
    """Replies with the facts, until the quota ends."""

    def __init__(self) -> None:
        self.answered: Counter[tuple[str, str]] = Counter()
        self.malformed: set[str] = set()
        """Responses about whose last segment it never says anything usable."""
        self.quota: int | None = None
        """Answers that are left; None for any number."""
        self.refused = 0
        self._lock = threading.Lock()

    def __call__(self, number: int, body: Request) -> Reply:
        question = asked(body)
        with self._lock:
            if self.quota is not None:
                if self.quota == 0:
                    self.refused += 1
                    return Reply.error(429, "insufficient_quota")
                self.quota -= 1
            self.answered[question] += 1
        return Reply.completion("I will not." if question[0] in self.malformed else facts_of(*question), usage=(10, 5))

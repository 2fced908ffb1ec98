"""Verified rows per second of the labelling job, against bare vLLM on the same prompts.

The job is the real one (Ray Data, extraction with known answers, the verification stage, written parts). Its speed is
taken between the first and the last part that it writes, so that no start of Ray or of an engine is in it. Bare vLLM
gets all prompts of a round at once in one `generate`, with the same engine options. Rounds alternate between the two,
and each has images of its own: nothing is in a prefix cache that an earlier round has filled. The verifier was never
trained, and its images take 225 tokens: the 9 of the embedded world's models fill no block of the cache.
"""

import os
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from actors.cluster.connect import connect
from actors.engine.start import image_prompt, start_engine
from actors.labelling import extraction
from actors.labelling.publish import METRICS_FILE
from benchmarks.labelling_memory import ANNOTATOR
from fgaif_ray import storage
from fgaif_ray.calls.answers import AnswerWriter, CallAnswer, cache_folder
from fgaif_ray.config import Config
from fgaif_ray.feedback.prompts import load_prompt
from fgaif_ray.images import load_image
from fgaif_ray.records import RESPONSES_SCHEMA, Fact, sample_identity
from fgaif_ray.segments import split_segments
from fgaif_ray.shapes import tiny_llava
from fgaif_ray.shapes.captions import POLICY_ERRORS, write_caption
from fgaif_ray.shapes.oracle import read_claims
from fgaif_ray.sources import load_truth, prepare_images
from fgaif_ray.storage import stages
from fgaif_ray.vlm.front_end import FrontEnd, load_front_end
from jobs import label

BLOCK: Final = 32
CELL_SIZE: Final = 4
"""Pixels of a patch of the image."""
PROMPT: Final = "Describe this image in detail."
ENGINE: Final = {
    "dtype": "float32",
    "max_model_len": 512,
    "max_num_seqs": 64,
    "kv_cache_gib": 0.5,
    "block_size": 32,  # the least on CPU; on a GPU vLLM takes 16 by itself
    "enforce_eager": True,
    "threads": 1,
}


@dataclass(frozen=True, slots=True)
class Verification:
    """Medians over the rounds, or sums."""

    job_rows_per_second: float
    bare_rows_per_second: float
    prefix_hit_rate: float
    """Share of the job's prompt tokens that were in its prefix cache, image tokens among them."""
    bare_prefix_hit_rate: float
    facts: int
    """Of a round."""

    @property
    def ratio(self) -> float:
        """Job over bare."""
        return self.job_rows_per_second / self.bare_rows_per_second


def verification_rates(rows: int, rounds: int) -> Verification:
    """Measure both.

    Args:
        rows: responses of a round; the first block of the job is not timed.
        rounds: number of rounds, after one of the bare engine to warm up.
    """
    with tempfile.TemporaryDirectory() as folder:
        verifier = _untrained_verifier(Path(folder) / "verifier")
        configs = [_configure(Path(folder) / str(number), rows, number, verifier) for number in range(rounds + 1)]
        prepared = [_prepare(config) for config in configs]
        engine = start_engine(verifier, configs[0].label.verifier.engine)
        front_end = load_front_end(verifier)
        _run_bare(engine, front_end, prepared[-1])
        bare: list[tuple[float, float]] = []
        job: list[tuple[float, float]] = []
        with connect(configs[0]):
            for config, round_rows in zip(configs[:-1], prepared[:-1], strict=True):
                bare.append(_run_bare(engine, front_end, round_rows))
                job.append(_run_job(config))
    return Verification(
        statistics.median(rate for rate, _ in job),
        statistics.median(rate for rate, _ in bare),
        statistics.median(hits for _, hits in job),
        statistics.median(hits for _, hits in bare),
        sum(len(facts) for _, facts in prepared[0]),
    )


def _untrained_verifier(folder: Path) -> str:
    from transformers import AutoTokenizer

    with patch.object(tiny_llava, "CELL_SIZE", CELL_SIZE):
        tokenizer: Any = AutoTokenizer.from_pretrained(ANNOTATOR)
        tiny_llava.save_checkpoint(tiny_llava.build_model(tokenizer), tiny_llava.build_processor(tokenizer), folder)
    return str(folder)


def _configure(run: Path, rows: int, seed: int, verifier: str) -> Config:
    return Config.model_validate(
        {
            "run": {"dir": str(run), "seed": seed},
            "ray": {"num_cpus": 4, "object_store_gib": 0.3},
            "data": {"source": "shapes", "sample_images": rows, "align_images": 1, "evaluate_images": 1},
            "policy": {"model": "policy"},
            "label": {
                "batch_size": BLOCK,
                "control_items": {"per_block": 0},
                # Every answer is known: nothing is called.
                "extractor": {"base_url": "http://127.0.0.1:9/v1", "model": "m", "prompt": "extract-short-v2"},
                "verifier": {"model": verifier, "engine": ENGINE},
            },
            "rewards": {"backbone": str(ANNOTATOR)},
        }
    )


def _prepare(config: Config) -> list[tuple[str, list[str]]]:
    """Publish responses and keep the answers about them; returns images and facts, row by row."""
    truth = load_truth(config)
    assert truth is not None
    extractor = extraction.new_extractor(config.label.extractor, extraction.Endpoint(None, None), config.run.types)
    answers = AnswerWriter(cache_folder(config.run.dir, None))
    rows: list[dict[str, Any]] = []
    facts_of_rows: list[tuple[str, list[str]]] = []
    for (image,) in prepare_images(config).sample:
        response = write_caption(truth[image], POLICY_ERRORS, random.Random(f"{config.run.seed} {image}"))
        spans = [(span.start, span.end) for span in split_segments(response)]
        facts = [[Fact(claim.type, claim.statement()) for claim in claims] for claims in read_claims(response, spans)]
        questions = extractor.questions(response, [response[start:end] for start, end in spans])
        for question, found in zip(questions, facts, strict=True):
            answers.keep(extractor.key(question), CallAnswer([found], None, None, "", 0, 0))
        rows.append(
            {
                "sample_id": sample_identity(image, PROMPT, "policy", {}),
                "image": image,
                "image_sha256": image,
                "prompt": PROMPT,
                "response": response,
                "token_ids": None,
                "finish_reason": "stop",
                "model": "policy",
            }
        )
        texts = dict.fromkeys(fact.text for found in facts for fact in found)
        facts_of_rows.append((image, list(texts)))
    stage = storage.Stage(config.run.dir, "responses", "f")
    stage.begin()
    storage.write_part(stage.partial, rows, RESPONSES_SCHEMA)
    stage.publish({"rows": len(rows)})
    return facts_of_rows


def _run_bare(engine: Any, front_end: FrontEnd, rows: Sequence[tuple[str, list[str]]]) -> tuple[float, float]:
    """Rows per second, and the share of prompt tokens in the prefix cache."""
    from vllm import SamplingParams

    prompt = load_prompt("verify-v1")
    prompts = []
    for path, facts in rows:
        image = load_image(path)
        prompts += [image_prompt(front_end.prompt_ids(prompt.render(statement=fact)), [image]) for fact in facts]
    words = front_end.tokens_of("yes") | front_end.tokens_of("no")
    parameters = SamplingParams(temperature=0.0, max_tokens=1, logprob_token_ids=list(words), detokenize=False)
    start = time.perf_counter()
    results = engine.generate(prompts, parameters, use_tqdm=False)
    seconds = time.perf_counter() - start
    cached = sum(result.num_cached_tokens or 0 for result in results)
    return len(rows) / seconds, cached / sum(len(result.prompt_token_ids) for result in results)


def _run_job(config: Config) -> tuple[float, float]:
    """Rows per second between the first and the last part, and the prefix hit rate that the job reports."""
    label.run(config)
    feedback = storage.join(config.run.dir, stages.FEEDBACK)
    parts = sorted(
        (os.stat(part).st_mtime, len(storage.read_part(part, ["sample_id"]))) for part in storage.list_parts(feedback)
    )
    seconds = parts[-1][0] - parts[0][0]
    metrics = storage.read_json(storage.join(feedback, METRICS_FILE))
    return sum(rows for _, rows in parts[1:]) / seconds, metrics["prefix_cache"]["hit_rate"]

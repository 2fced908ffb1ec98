"""Labelled responses, runs and answers for the tests of the audit."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

from fgaif_ray import storage
from fgaif_ray.audit.items import Audit, AuditSampler
from fgaif_ray.config import Config
from fgaif_ray.records import (
    CLASS_NAMES,
    CONSISTENT,
    FACT_TYPES,
    HALLUCINATED,
    Feedback,
    JudgedFact,
    Response,
    feedback_schema,
)
from fgaif_ray.shapes.render import render
from fgaif_ray.shapes.scenes import draw_scene
from jobs import audit as audit_job
from support.labelled import segment_by_ai

HOSTILE = "</script><script>document.title = 'taken'</script><!--<img src=x onerror=alert(1)> \u2028 😀 "


def feedback_row(number: int, image: str, segments: list[tuple[str, tuple[int, int, int]]]) -> Feedback:
    """A labelled response; each label has a fact of its type that the AI judged so."""
    parts, start = [], 0
    for text, labels in segments:
        facts = (
            JudgedFact(type=name, text=f"{name} of {text.strip()}", p_consistent=0.5, consistent=code == CONSISTENT)
            for name, code in zip(FACT_TYPES, labels, strict=True)
            if code
        )
        parts.append(segment_by_ai(text, labels, start, tuple(facts)))
        start += len(text)
    response = Response(
        sample_id=hashlib.sha256(str(number).encode()).hexdigest(),
        image=image,
        image_sha256=hashlib.sha256(image.encode()).hexdigest(),
        prompt="What is there?",
        text="".join(text for text, _ in segments),
        finish_reason="stop",
        model="policy",
    )
    return Feedback(response=response, segments=tuple(parts), annotator="{}")


def many_rows(count: int, seed: int = 0) -> list[Feedback]:
    generator = random.Random(seed)
    rows = []
    for number in range(count):
        segments = []
        for index in range(4):
            existence, attribute, relation = (generator.choices((0, 1, 2), (10, 10, 1))[0] for _ in FACT_TYPES)
            segments.append((f"Words {number} {index}. ", (existence, attribute, relation)))
        rows.append(feedback_row(number, f"{number % 200}.png", segments))
    return rows


def draw(rows: list[Feedback], count: int, seed: int = 0) -> Audit:
    sampler = AuditSampler(count, seed)
    for row in rows:
        sampler.offer(row)
    return sampler.collect(rows)


def labelled_run(folder: Path) -> Config:
    """A labelled run with real images; one response is hostile."""
    rows = []
    for number in range(8):
        path = folder / f"{number}.png"
        render(draw_scene("heldout", number)).save(path)
        segments = [
            (HOSTILE if number == 3 else "There is a red circle, ", (CONSISTENT, HALLUCINATED, 0)),
            ("and a star to the left of it.", (CONSISTENT, 0, CONSISTENT)),
        ]
        rows.append(feedback_row(number, str(path), segments))
    config = Config.model_validate(
        {
            "run": {"dir": str(folder)},
            "data": {"path": str(folder)},
            "policy": {"model": "p"},
            "label": {"extractor": {"base_url": "http://127.0.0.1:9/v1", "model": "m"}, "verifier": {"model": "v"}},
            "rewards": {"backbone": "b"},
            "report": {"title": HOSTILE},
        }
    )
    stage = storage.Stage(str(folder), "feedback", "f")
    stage.begin()
    storage.write_part(stage.partial, [row.to_row() for row in rows], feedback_schema(FACT_TYPES))
    stage.publish({"rows": len(rows)})
    audit_job.draw_audit(config, 16)
    return config


def audit_file(config: Config, name: str) -> Path:
    return Path(config.run.dir) / "audit" / name


def sample_of(config: Config) -> Audit:
    return Audit.from_dict(json.loads(audit_file(config, "sample.json").read_text()))


def answer_file(path: Path, sample: Audit, annotator: str = "ann", **changes: Any) -> str:
    """Our form, agreeing with the AI everywhere; ``changes`` replace keys of the file."""
    answers = [
        {
            "sample_id": item.sample_id,
            "segment": item.segment,
            "text": item.text,
            "facts": ["right" if verdict else "wrong" for verdict in item.verdicts],
            "labels": {name: CLASS_NAMES[code] for name, code in item.labels.items()},
        }
        for item in sample.items
    ]
    head = {"format": "fgaif-audit-answers", "version": 1, "audit": sample.id, "annotator": annotator}
    path.write_text(json.dumps(head | {"answers": answers} | changes))
    return str(path)
